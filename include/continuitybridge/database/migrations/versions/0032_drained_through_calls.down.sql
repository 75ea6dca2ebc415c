-- As it was before.
CREATE OR REPLACE FUNCTION bridge.draining(organization uuid, env text, flow_name text, flow_version text) RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(
        (SELECT 'the flow is being drained' FROM bridge.flow_holds h
         WHERE h.organization_id = organization AND h.environment = env AND h.flow = flow_name AND h.kind = 'drain'
         LIMIT 1),
        (SELECT 'a destination of the flow is being drained' FROM bridge.destinations d
         WHERE d.organization_id = organization AND d.environment = env AND d.status = 'draining'
           AND EXISTS (
               SELECT FROM bridge.flow_versions v, LATERAL json_array_elements(v.plan -> 'nodes') AS n (node)
               WHERE v.organization_id = organization AND v.flow = flow_name AND v.version = flow_version
                 AND d.name IN (
                     n.node -> 'config' ->> 'connection',
                     lower(trim(BOTH '[]' FROM substring(n.node -> 'config' ->> 'url'
                                                         FROM '^[A-Za-z]+://(?:[^/@]*@)?(\[[^\]]*\]|[^/:?#]+)')))))
         LIMIT 1))
$$;
