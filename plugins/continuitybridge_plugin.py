"""Registers the platform with Airflow; decides nothing."""

from continuitybridge.airflow.plugin import ContinuityBridgePlugin

__all__ = ["ContinuityBridgePlugin"]
