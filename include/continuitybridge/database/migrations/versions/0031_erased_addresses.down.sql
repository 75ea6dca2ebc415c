-- As it was before.
CREATE OR REPLACE FUNCTION bridge.erase_from_rows(organization uuid, person text, pseudonym text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    erased bigint := 0;
    more   bigint;
    place  record;
    stays  boolean;
BEGIN
    PERFORM set_config('bridge.erasing', organization::text, true);
    PERFORM set_config('bridge.counting', 'on', true);
    stays := EXISTS (
        SELECT FROM bridge.memberships m WHERE m.organization_id = organization AND m.user_name = person);
    PERFORM set_config('bridge.counting', '', true);
    FOR place IN
        SELECT * FROM (VALUES
            ('api_keys', 'created_by'), ('api_keys', 'revoked_by'),
            ('connections', 'updated_by'),
            ('deployment_history', 'by'), ('deployments', 'deployed_by'),
            ('destinations', 'status_by'), ('flow_holds', 'by'),
            ('flow_versions', 'created_by'),
            ('guard_blocks', 'blocked_by'),
            ('invitations', 'created_by'), ('invitations', 'revoked_by'),
            ('replay_jobs', 'created_by'), ('replay_jobs', 'ended_by'),
            ('secret_versions', 'created_by'), ('secrets', 'updated_by'),
            ('token_connects', 'user_name')) AS places (relation, name)
    LOOP
        EXECUTE format('UPDATE bridge.%1$I SET %2$I = $3 WHERE organization_id = $1 AND %2$I = $2',
                       place.relation, place.name) USING organization, person, pseudonym;
        GET DIAGNOSTICS more = ROW_COUNT;
        erased := erased + more;
    END LOOP;
    UPDATE bridge.invitations SET email = pseudonym,
        accepted_by = CASE WHEN accepted_by = person THEN pseudonym ELSE accepted_by END
    WHERE organization_id = organization AND (accepted_by = person OR (email = lower(person)
        AND (accepted_at IS NOT NULL OR revoked_at IS NOT NULL OR expires_at <= now())));
    GET DIAGNOSTICS more = ROW_COUNT;
    erased := erased + more;
    UPDATE bridge.api_keys SET user_name = pseudonym
    WHERE organization_id = organization AND user_name = person
      AND (revoked_at IS NOT NULL OR expires_at <= now() OR NOT stays);
    GET DIAGNOSTICS more = ROW_COUNT;
    erased := erased + more;
    DELETE FROM bridge.visits WHERE organization_id = organization AND user_name = person AND NOT stays;
    GET DIAGNOSTICS more = ROW_COUNT;
    PERFORM set_config('bridge.erasing', '', true);
    RETURN erased + more;
END
$$;
