DROP FUNCTION bridge.erase_from_rows;
DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['api_keys', 'connections', 'deployment_history', 'deployments', 'destinations',
        'flow_holds', 'flow_versions', 'guard_blocks', 'invitations', 'replay_jobs', 'secret_versions', 'secrets',
        'token_connects', 'visits'] LOOP
        EXECUTE pg_catalog.format('DROP POLICY erasing ON bridge.%I', relation);
    END LOOP;
END
$$;
