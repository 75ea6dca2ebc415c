-- Destinations, holds of flows, and what a message waits for when its destination is not called.

-- What is said of a destination: a named connection of the environment, else the host of a URL. One without a row
-- has the settings' defaults. `openings` and `opened_until` are its circuit as processes told it last.
CREATE TABLE bridge.destinations (
    organization_id    uuid NOT NULL,
    environment        text NOT NULL,
    name               text NOT NULL CHECK (name ~ '^[a-z0-9:][a-z0-9._:-]{0,252}$'),
    status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'draining')),
    reason             text NOT NULL DEFAULT '',
    status_since       timestamptz NOT NULL DEFAULT now(),
    status_by          text NOT NULL DEFAULT '',
    max_concurrency    integer CHECK (max_concurrency > 0),
    circuit_failures   integer CHECK (circuit_failures >= 0),
    circuit_wait_s     double precision CHECK (circuit_wait_s > 0),
    circuit_max_wait_s double precision CHECK (circuit_max_wait_s > 0),
    failures           integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    openings           integer NOT NULL DEFAULT 0 CHECK (openings >= 0),
    opened_until       timestamptz,
    updated_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, environment, name),
    FOREIGN KEY (organization_id, environment) REFERENCES bridge.environments ON DELETE CASCADE,
    CHECK ((openings > 0) = (opened_until IS NOT NULL))
);

-- A held flow: paused, nothing of it is claimed; draining, it takes nothing new and finishes what is there. A person
-- (origin bridge) and Airflow's pause button (origin airflow) hold it independently of each other.
CREATE TABLE bridge.flow_holds (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    origin          text NOT NULL DEFAULT 'bridge' CHECK (origin IN ('bridge', 'airflow')),
    kind            text NOT NULL CHECK (kind IN ('pause', 'drain')),
    by              text NOT NULL,
    reason          text NOT NULL DEFAULT '',
    since           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, environment, flow, origin),
    FOREIGN KEY (organization_id, environment, flow) REFERENCES bridge.deployments ON DELETE CASCADE
);

-- The destination that turned a unit of work back when it was last tried; null when none did.
ALTER TABLE bridge.messages ADD COLUMN waits_for text;
ALTER TABLE bridge.hand_overs ADD COLUMN waits_for text;
CREATE INDEX messages_waits_for ON bridge.messages (organization_id, environment, waits_for)
    WHERE waits_for IS NOT NULL;
CREATE INDEX hand_overs_waits_for ON bridge.hand_overs (organization_id, environment, waits_for)
    WHERE waits_for IS NOT NULL;

-- Why a flow version takes no new messages: it drains, or a destination does that one of its nodes names. Null when
-- it takes them.
CREATE FUNCTION bridge.draining(organization uuid, env text, flow_name text, flow_version text) RETURNS text
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

ALTER TABLE bridge.destinations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.flow_holds ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['destinations', 'flow_holds'] LOOP
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY relay ON bridge.%I TO bridge_relay USING (true) WITH CHECK (true)', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.%I TO bridge_app', relation);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.%I TO bridge_relay', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_backup', relation);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION bridge.draining FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.draining TO bridge_app, bridge_relay;
