-- A flow takes nothing new either while one that it calls is drained: what it took would come there, and neither that
-- flow nor its destination would ever be empty.
CREATE OR REPLACE FUNCTION bridge.draining(organization uuid, env text, flow_name text, flow_version text) RETURNS text
LANGUAGE sql STABLE
AS $$
    -- Mostly nothing drains: then no plan is read.
    SELECT CASE WHEN EXISTS (
        SELECT FROM bridge.flow_holds h
        WHERE h.organization_id = organization AND h.environment = env AND h.kind = 'drain'
    ) OR EXISTS (
        SELECT FROM bridge.destinations d
        WHERE d.organization_id = organization AND d.environment = env AND d.status = 'draining'
    ) THEN (
        WITH RECURSIVE reached (flow, version) AS (
            SELECT flow_name, flow_version
            UNION
            SELECT c.flow, c.version
            FROM reached r
            JOIN bridge.flow_versions v
              ON v.organization_id = organization AND v.flow = r.flow AND v.version = r.version
            CROSS JOIN LATERAL json_array_elements(v.plan -> 'nodes') AS n (node)
            JOIN bridge.deployments c ON c.organization_id = organization AND c.environment = env
             AND c.flow = n.node -> 'config' ->> 'flow' AND c.status <> 'removed'
            WHERE n.node ->> 'type' = 'subflow'
        )
        SELECT found.why FROM (
            SELECT CASE WHEN r.flow = flow_name THEN 'the flow is being drained'
                        ELSE 'a flow that it calls is being drained' END AS why, 1 AS place, r.flow <> flow_name AS called
            FROM reached r JOIN bridge.flow_holds h
              ON h.organization_id = organization AND h.environment = env AND h.flow = r.flow AND h.kind = 'drain'
            UNION ALL
            SELECT CASE WHEN r.flow = flow_name THEN 'a destination of the flow is being drained'
                        ELSE 'a destination of a flow that it calls is being drained' END, 2, r.flow <> flow_name
            FROM reached r
            JOIN bridge.flow_versions v
              ON v.organization_id = organization AND v.flow = r.flow AND v.version = r.version
            CROSS JOIN LATERAL json_array_elements(v.plan -> 'nodes') AS n (node)
            JOIN bridge.destinations d
              ON d.organization_id = organization AND d.environment = env AND d.status = 'draining'
             AND d.name IN (
                 n.node -> 'config' ->> 'connection',
                 lower(trim(BOTH '[]' FROM substring(n.node -> 'config' ->> 'url'
                                                     FROM '^[A-Za-z]+://(?:[^/@]*@)?(\[[^\]]*\]|[^/:?#]+)'))))
        ) found ORDER BY found.called, found.place LIMIT 1
    ) END
$$;
