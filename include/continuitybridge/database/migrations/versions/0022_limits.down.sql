DROP FUNCTION bridge.expire_settled;
ALTER TABLE bridge.organization_limits NO FORCE ROW LEVEL SECURITY;
DELETE FROM bridge.organization_limits WHERE resource IN
    ('concurrent_runs', 'api_calls_per_minute', 'api_calls_per_hour', 'data_retention_days');
ALTER TABLE bridge.organization_limits FORCE ROW LEVEL SECURITY;
