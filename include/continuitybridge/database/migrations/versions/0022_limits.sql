-- More of what a tier limits: runs at once, calls by programs, how long settled messages are kept.

-- Organizations that are here get what their tier allows; what they have kept so far stays as long as it did.
ALTER TABLE bridge.organizations NO FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.organization_limits NO FORCE ROW LEVEL SECURITY;
INSERT INTO bridge.organization_limits (organization_id, resource, allowed)
SELECT o.organization_id, l.resource,
       CASE o.tier WHEN 'free' THEN l.free WHEN 'starter' THEN l.starter WHEN 'professional' THEN l.professional
                   ELSE l.enterprise END
FROM bridge.organizations o, (VALUES
    ('concurrent_runs', 2, 5, 20, 100),
    ('api_calls_per_minute', 10, 50, 200, 1000),
    ('api_calls_per_hour', 500, 2000, 10000, NULL),
    ('data_retention_days', NULL, NULL, NULL, NULL)
) AS l (resource, free, starter, professional, enterprise);
ALTER TABLE bridge.organizations FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.organization_limits FORCE ROW LEVEL SECURITY;

-- Remove the rows of up to `at_most` messages that were settled before `before`, except what is under legal hold; gives
-- how many. Runs as the owner: what is over for all goes by dropping partitions, and no role of ours deletes here.
CREATE FUNCTION bridge.expire_settled(organization uuid, before timestamptz, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    removed bigint;
BEGIN
    IF before > now() THEN
        RAISE EXCEPTION '% is in the future', before USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('bridge.removing', organization::text, true);
    DELETE FROM bridge.settled_messages s
    WHERE s.organization_id = organization AND s.settled_at < before AND s.placement <> 'held' AND s.message_id IN (
        SELECT m.message_id FROM bridge.settled_messages m
        WHERE m.organization_id = organization AND m.settled_at < before AND m.placement <> 'held' LIMIT at_most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    PERFORM set_config('bridge.removing', '', true);
    RETURN removed;
END
$$;
REVOKE ALL ON FUNCTION bridge.expire_settled FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.expire_settled TO bridge_relay;
