DO $$
DECLARE
    relation text;
BEGIN
    FOR relation IN
        SELECT c.relname FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
        WHERE c.relnamespace = 'bridge'::regnamespace AND p.polname = 'removal'
    LOOP
        EXECUTE pg_catalog.format('DROP POLICY removal ON bridge.%I', relation);
    END LOOP;
END
$$;
DROP FUNCTION bridge.remove_rows, bridge.allow_removal, bridge.organization_being_removed;
REVOKE USAGE ON SEQUENCE bridge.deployment_revision FROM bridge_platform;
DROP TABLE bridge.deletions;
