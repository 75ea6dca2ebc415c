"""What those who claim have to know of pauses (`holds` makes them)."""

from __future__ import annotations

NOT_PAUSED = """NOT EXISTS (
    SELECT FROM bridge.flow_holds h
    WHERE h.organization_id = {row}.organization_id AND h.environment = {row}.environment AND h.flow = {row}.flow
      AND h.kind = 'pause')"""
"""For whoever claims: true of a row (message, hand-over, deployment) whose flow is not paused."""
