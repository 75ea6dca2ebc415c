DROP FUNCTION bridge.take_allowance;
DROP TRIGGER quota ON bridge.environments;
DROP TRIGGER quota ON bridge.memberships;
DROP TRIGGER quota ON bridge.connections;
DROP TRIGGER quota ON bridge.endpoints;
DROP TRIGGER quota ON bridge.flow_versions;
DROP TRIGGER quota ON bridge.deployments;
DROP FUNCTION bridge.check_environment_quota, bridge.check_member_quota, bridge.check_connection_quota,
    bridge.check_endpoint_quota, bridge.check_version_quota, bridge.check_flow_quota, bridge.refuse_over_limit,
    bridge.limit_of;
DROP TABLE bridge.quota_windows;
DROP TABLE bridge.organization_limits;
ALTER TABLE bridge.organizations DROP COLUMN tier;
