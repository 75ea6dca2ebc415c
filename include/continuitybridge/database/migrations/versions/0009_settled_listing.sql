-- Pages of settled messages whose cost does not grow with their number.

-- A flow's, in the order of their ids.
CREATE INDEX settled_messages_flow_id ON bridge.settled_messages (organization_id, environment, flow, message_id);

-- By search key. Row-level security lets no condition near an index whose operator might tell of other rows than
-- those the policy shows (jsonb's @> is not marked leakproof), so that the index on keys served nobody. This function
-- reads as the owner, who sees all rows of these two tables, and shows the organization of the transaction, as the
-- policy of the application role does. The fence keeps the planner from walking through all messages in search of
-- those with the key.
CREATE POLICY lookup ON bridge.messages FOR SELECT TO bridge_owner USING (true);
CREATE POLICY lookup ON bridge.settled_messages FOR SELECT TO bridge_owner USING (true);

CREATE FUNCTION bridge.settled_by_keys(
    wanted jsonb, only_environment text, only_flow text, only_source text, only_result text,
    since timestamptz, until timestamptz, below text, most integer
) RETURNS SETOF bridge.settled_messages
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT * FROM (
        SELECT * FROM bridge.settled_messages k
        WHERE k.organization_id = (SELECT bridge.current_organization()) AND k.keys @> wanted
          AND (since IS NULL OR k.settled_at >= since)
        OFFSET 0) AS s
    WHERE (only_environment IS NULL OR s.environment = only_environment)
      AND (only_flow IS NULL OR s.flow = only_flow)
      AND (only_source IS NULL OR s.source = only_source)
      AND (only_result IS NULL OR s.result = only_result)
      AND (since IS NULL OR s.accepted_at >= since)
      AND (until IS NULL OR s.accepted_at < until)
      AND (below IS NULL OR s.message_id < below)
      AND NOT EXISTS (SELECT FROM bridge.messages m
                      WHERE m.organization_id = s.organization_id AND m.message_id = s.message_id)
      AND NOT EXISTS (SELECT FROM bridge.settled_messages l
                      WHERE l.organization_id = s.organization_id AND l.message_id = s.message_id
                        AND l.settled_at >= s.settled_at AND l.replays > s.replays)
    ORDER BY s.message_id DESC LIMIT most
$$;
REVOKE ALL ON FUNCTION bridge.settled_by_keys FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.settled_by_keys TO bridge_app;
