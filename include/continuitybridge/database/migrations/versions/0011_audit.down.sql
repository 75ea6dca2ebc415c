DROP TABLE bridge.audit_events, bridge.audit_chains, bridge.audit_subjects;
DROP FUNCTION bridge.append_to_audit, bridge.audit_framed;
