DROP TABLE bridge.refusals, bridge.idempotency_keys, bridge.settled_messages, bridge.failures, bridge.hand_overs,
    bridge.messages, bridge.batches, bridge.connections, bridge.endpoint_secrets, bridge.endpoints,
    bridge.deployment_history, bridge.deployments, bridge.flow_versions, bridge.data_keys, bridge.memberships,
    bridge.environments, bridge.organizations;
DROP SEQUENCE bridge.deployment_revision;
DROP FUNCTION bridge.make_settled_partition, bridge.drop_settled_partitions, bridge.current_organization,
    bridge.current_user_name;
REVOKE ALL ON SCHEMA bridge FROM bridge_app, bridge_relay, bridge_platform, bridge_backup;
REVOKE ALL ON bridge.alembic_version FROM bridge_backup;
