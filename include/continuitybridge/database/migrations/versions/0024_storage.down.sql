DROP FUNCTION bridge.take_storage;
DROP TABLE bridge.storage_use;
ALTER TABLE bridge.organization_limits NO FORCE ROW LEVEL SECURITY;
DELETE FROM bridge.organization_limits WHERE resource = 'storage_mb';
ALTER TABLE bridge.organization_limits FORCE ROW LEVEL SECURITY;
