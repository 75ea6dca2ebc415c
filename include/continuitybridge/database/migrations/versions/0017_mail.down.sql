DROP TABLE bridge.mails;
ALTER TABLE bridge.data_keys NO FORCE ROW LEVEL SECURITY;
DELETE FROM bridge.data_keys WHERE owner_id IS NULL;
ALTER TABLE bridge.data_keys FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.data_keys DROP COLUMN owner_id;
ALTER TABLE bridge.data_keys
    ADD CONSTRAINT data_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES bridge.organizations
        ON DELETE CASCADE;
