-- What a person accepted says which addresses are his: they go from the other invitations to them as well. One that is
-- open keeps its address, by which it is to be accepted.
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
    -- One pseudonym for each address: of those that nobody ended, an address has one.
    WITH addresses AS (
        SELECT address, pseudonym || CASE WHEN number > 1 THEN '-' || number ELSE '' END AS stands
        FROM (SELECT email AS address, row_number() OVER (ORDER BY email) AS number
              FROM bridge.invitations WHERE organization_id = organization
              GROUP BY email HAVING email = lower(person) OR bool_or(accepted_by = person)) AS his)
    UPDATE bridge.invitations i SET email = a.stands,
        accepted_by = CASE WHEN i.accepted_by = person THEN pseudonym ELSE i.accepted_by END
    FROM addresses a
    WHERE i.organization_id = organization AND i.email = a.address
      AND (i.accepted_at IS NOT NULL OR i.revoked_at IS NOT NULL OR i.expires_at <= now());
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
