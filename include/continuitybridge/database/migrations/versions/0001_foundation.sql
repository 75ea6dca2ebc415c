-- Tables, functions, row-level security and grants of the foundation.
-- Roles are made beforehand (they are cluster-wide): bridge_owner owns, bridge_app serves requests of people and
-- of one organization at a time, bridge_relay moves messages across organizations, bridge_platform manages
-- organizations and memberships, bridge_backup reads everything.

CREATE OR REPLACE FUNCTION bridge.current_organization() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT nullif(pg_catalog.current_setting('bridge.organization_id', true), '')::pg_catalog.uuid $$;

CREATE OR REPLACE FUNCTION bridge.current_user_name() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT nullif(pg_catalog.current_setting('bridge.user_name', true), '') $$;

-- ---------------------------------------------------------------- organizations
CREATE TABLE bridge.organizations (
    organization_id uuid PRIMARY KEY,
    slug            text NOT NULL UNIQUE CHECK (slug ~ '^[a-z][a-z0-9-]{0,39}$'),
    name            text NOT NULL,
    status          text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'deleting')),
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE bridge.environments (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    environment     text NOT NULL CHECK (environment IN ('dev', 'test', 'staging', 'prod')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, environment)
);

CREATE TABLE bridge.memberships (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    user_name       text NOT NULL,
    role            text NOT NULL CHECK (role IN ('consultant', 'customer_admin', 'customer_user')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, user_name)
);
CREATE INDEX memberships_user_name ON bridge.memberships (user_name);

-- Data keys, wrapped by the master key (AES-256-GCM; associated data binds organization and key_version).
CREATE TABLE bridge.data_keys (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    key_version     integer NOT NULL CHECK (key_version > 0),
    wrapped_key     bytea NOT NULL,
    master_key_id   text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    retired_at      timestamptz,
    PRIMARY KEY (organization_id, key_version)
);

-- ---------------------------------------------------------------- flows
CREATE TABLE bridge.flow_versions (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    flow            text NOT NULL CHECK (flow ~ '^[a-z][a-z0-9_-]{0,63}$'),
    version         text NOT NULL,
    digest          text NOT NULL,
    source          text NOT NULL,
    files           jsonb NOT NULL DEFAULT '{}',
    -- json, not jsonb, which reorders keys: a conditional takes the first of its branches that holds.
    plan            json NOT NULL,
    description     text NOT NULL DEFAULT '',
    labels          jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    PRIMARY KEY (organization_id, flow, version)
);

CREATE SEQUENCE bridge.deployment_revision;

-- What is deployed where, now. `revision` grows with every change and tells readers what is new.
CREATE TABLE bridge.deployments (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    status          text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled', 'removed')),
    revision        bigint NOT NULL DEFAULT nextval('bridge.deployment_revision'),
    deployed_at     timestamptz NOT NULL DEFAULT now(),
    deployed_by     text NOT NULL,
    PRIMARY KEY (organization_id, environment, flow),
    FOREIGN KEY (organization_id, environment) REFERENCES bridge.environments ON DELETE CASCADE,
    FOREIGN KEY (organization_id, flow, version) REFERENCES bridge.flow_versions
);
CREATE INDEX deployments_revision ON bridge.deployments (revision);
CREATE INDEX deployments_version ON bridge.deployments (organization_id, flow, version);

CREATE TABLE bridge.deployment_history (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    revision        bigint NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    action          text NOT NULL CHECK (action IN ('deploy', 'rollback', 'disable', 'enable', 'remove')),
    at              timestamptz NOT NULL DEFAULT now(),
    by              text NOT NULL,
    PRIMARY KEY (organization_id, revision)
);
CREATE INDEX deployment_history_flow ON bridge.deployment_history (organization_id, environment, flow, revision);

-- Where messages of others come in. One row per webhook trigger of a deployed flow.
CREATE TABLE bridge.endpoints (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    slug            text NOT NULL CHECK (slug ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    flow            text NOT NULL,
    trigger_id      text NOT NULL,
    verification    text NOT NULL,
    settings        jsonb NOT NULL DEFAULT '{}',
    status          text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    revision        bigint NOT NULL DEFAULT nextval('bridge.deployment_revision'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, environment, slug),
    FOREIGN KEY (organization_id, environment, flow) REFERENCES bridge.deployments ON DELETE CASCADE
);
CREATE INDEX endpoints_flow ON bridge.endpoints (organization_id, environment, flow);

-- Secrets of endpoints; several may be valid at once (rotation). Ciphertext under the organization's data key.
CREATE TABLE bridge.endpoint_secrets (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    slug            text NOT NULL,
    secret_id       uuid NOT NULL,
    ciphertext      bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz,
    PRIMARY KEY (organization_id, environment, slug, secret_id),
    FOREIGN KEY (organization_id, environment) REFERENCES bridge.environments ON DELETE CASCADE
);

-- Named connections of nodes. `settings` is not secret (base URL, headers' names); `ciphertext` is.
CREATE TABLE bridge.connections (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    name            text NOT NULL CHECK (name ~ '^[a-z][a-z0-9_-]{0,63}$'),
    type            text NOT NULL,
    settings        jsonb NOT NULL DEFAULT '{}',
    ciphertext      bytea,
    revision        integer NOT NULL DEFAULT 1,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    updated_by      text NOT NULL,
    PRIMARY KEY (organization_id, environment, name),
    FOREIGN KEY (organization_id, environment) REFERENCES bridge.environments ON DELETE CASCADE
);

-- ---------------------------------------------------------------- inbox
-- The inbox's busy tables have no foreign key to organizations: it would cost a look-up per row and make all
-- accepts of an organization lock its one row. Deleting an organization deletes its messages explicitly.

-- A batch is one run of a flow's DAG over many messages.
CREATE TABLE bridge.batches (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    batch_id        text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    dag_id          text NOT NULL,
    run_id          text NOT NULL,
    status          text NOT NULL DEFAULT 'created' CHECK (status IN ('created', 'started', 'settled', 'abandoned')),
    messages        integer NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    active_at       timestamptz NOT NULL DEFAULT now(),
    settled_at      timestamptz,
    PRIMARY KEY (organization_id, batch_id),
    UNIQUE (dag_id, run_id)
) WITH (fillfactor = 80);
CREATE INDEX batches_open ON bridge.batches (organization_id, environment, flow, version)
    WHERE status IN ('created', 'started');
CREATE INDEX batches_quiet ON bridge.batches (active_at) WHERE status IN ('created', 'started');
CREATE INDEX batches_ended ON bridge.batches (settled_at) WHERE status IN ('settled', 'abandoned');

-- Hot table: everything unsettled, and dead letters until somebody decides.
-- accepted: may be claimed from available_at on; claimed: a worker holds it under lease and epoch; handed_over:
-- what is left to do stands in hand_overs; waiting: for a time, siblings or a person; dead: in triage.
CREATE TABLE bridge.messages (
    organization_id uuid NOT NULL,
    message_id      text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    source          text NOT NULL CHECK (source IN ('webhook', 'api', 'schedule', 'manual', 'poller', 'flow')),
    trigger_id      text,
    endpoint        text,
    state           text NOT NULL DEFAULT 'accepted'
                    CHECK (state IN ('accepted', 'claimed', 'handed_over', 'waiting', 'dead')),
    payload         bytea NOT NULL,
    headers         bytea,
    content_type    text NOT NULL DEFAULT 'application/octet-stream',
    size_bytes      integer NOT NULL,
    keys            jsonb NOT NULL DEFAULT '{}',
    ordering_key    text,
    parent_id       text,
    generation      integer NOT NULL DEFAULT 1,
    replays         integer NOT NULL DEFAULT 0,
    attempts        integer NOT NULL DEFAULT 0,
    epoch           bigint NOT NULL DEFAULT 0,
    lease_owner     text,
    lease_until     timestamptz,
    available_at    timestamptz NOT NULL DEFAULT now(),
    batch_id        text,
    trace           jsonb NOT NULL DEFAULT '[]',
    retention_class text NOT NULL DEFAULT 'standard' CHECK (retention_class IN ('short', 'standard', 'long')),
    legal_hold      boolean NOT NULL DEFAULT false,
    accepted_at     timestamptz NOT NULL DEFAULT now(),
    dead_at         timestamptz,
    PRIMARY KEY (organization_id, message_id),
    FOREIGN KEY (organization_id, batch_id) REFERENCES bridge.batches,
    CHECK ((state = 'claimed') = (lease_until IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.05);
-- Ciphertext does not compress.
ALTER TABLE bridge.messages ALTER payload SET STORAGE EXTERNAL, ALTER headers SET STORAGE EXTERNAL;
CREATE INDEX messages_ready ON bridge.messages (organization_id, environment, flow, version, available_at)
    WHERE state = 'accepted' AND batch_id IS NULL;
CREATE INDEX messages_batch ON bridge.messages (organization_id, batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX messages_lease ON bridge.messages (lease_until) WHERE state = 'claimed';
CREATE INDEX messages_dead ON bridge.messages (organization_id, dead_at) WHERE state = 'dead';
CREATE INDEX messages_parent ON bridge.messages (organization_id, parent_id) WHERE parent_id IS NOT NULL;

-- What is left to do of a message in state handed_over, each a unit with a lease of its own: a message that
-- crossed into another stage, or one that failed at a node and is tried again from there. `dead` and `skipped`
-- ones stay until their message is settled or replayed; what is done is deleted.
CREATE TABLE bridge.hand_overs (
    organization_id uuid NOT NULL,
    hand_over_id    uuid NOT NULL,
    message_id      text NOT NULL,
    child_id        text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    stage           text NOT NULL,
    node_id         text NOT NULL,
    state           text NOT NULL DEFAULT 'available'
                    CHECK (state IN ('available', 'claimed', 'waiting', 'skipped', 'dead')),
    payload         bytea NOT NULL,
    attempts        integer NOT NULL DEFAULT 0,
    epoch           bigint NOT NULL DEFAULT 0,
    lease_owner     text,
    lease_until     timestamptz,
    available_at    timestamptz NOT NULL DEFAULT now(),
    batch_id        text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, hand_over_id),
    FOREIGN KEY (organization_id, message_id) REFERENCES bridge.messages ON DELETE CASCADE,
    FOREIGN KEY (organization_id, batch_id) REFERENCES bridge.batches,
    CHECK ((state = 'claimed') = (lease_until IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE bridge.hand_overs ALTER payload SET STORAGE EXTERNAL;
CREATE INDEX hand_overs_message ON bridge.hand_overs (organization_id, message_id);
CREATE INDEX hand_overs_ready ON bridge.hand_overs (organization_id, environment, flow, version, available_at)
    WHERE state = 'available' AND batch_id IS NULL;
CREATE INDEX hand_overs_batch ON bridge.hand_overs (organization_id, batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX hand_overs_lease ON bridge.hand_overs (lease_until) WHERE state = 'claimed';

-- Why a message failed, attempt by attempt. `context` (detail, facts, input snapshot, node configuration, stack,
-- versions) is encrypted like a payload; it is absent where nothing was captured (a lease that ran out).
CREATE TABLE bridge.failures (
    organization_id uuid NOT NULL,
    failure_id      uuid NOT NULL,
    message_id      text NOT NULL,
    child_id        text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    node_id         text,
    node_type       text,
    code            text NOT NULL,
    verdict         text NOT NULL CHECK (verdict IN ('transient', 'terminal')),
    final           boolean NOT NULL,
    attempt         integer NOT NULL,
    context         bytea,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, failure_id)
);
ALTER TABLE bridge.failures ALTER context SET STORAGE EXTERNAL;
CREATE INDEX failures_message ON bridge.failures (organization_id, message_id);
CREATE INDEX failures_at ON bridge.failures (at);

-- Settled messages: partitioned by retention class, then by time, so that cleaning up is a drop. Rows under
-- legal hold stand in a partition of their own (placement follows retention_class unless held).
CREATE TABLE bridge.settled_messages (
    organization_id uuid NOT NULL,
    message_id      text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    source          text NOT NULL,
    trigger_id      text,
    endpoint        text,
    result          text NOT NULL CHECK (result IN ('done', 'skipped', 'dead')),
    payload         bytea,
    headers         bytea,
    content_type    text NOT NULL,
    size_bytes      integer NOT NULL,
    keys            jsonb NOT NULL DEFAULT '{}',
    ordering_key    text,
    parent_id       text,
    generation      integer NOT NULL,
    replays         integer NOT NULL,
    attempts        integer NOT NULL,
    batch_id        text,
    trace           jsonb NOT NULL DEFAULT '[]',
    retention_class text NOT NULL,
    placement       text NOT NULL CHECK (placement IN ('held', retention_class)),
    accepted_at     timestamptz NOT NULL,
    settled_at      timestamptz NOT NULL DEFAULT now()
) PARTITION BY LIST (placement);
ALTER TABLE bridge.settled_messages ALTER payload SET STORAGE EXTERNAL, ALTER headers SET STORAGE EXTERNAL;
CREATE INDEX settled_messages_id ON bridge.settled_messages (organization_id, message_id);
CREATE INDEX settled_messages_flow ON bridge.settled_messages (organization_id, environment, flow, settled_at);
CREATE INDEX settled_messages_keys ON bridge.settled_messages USING gin (keys jsonb_path_ops);

CREATE TABLE bridge.settled_messages_held PARTITION OF bridge.settled_messages FOR VALUES IN ('held');
CREATE TABLE bridge.settled_messages_short PARTITION OF bridge.settled_messages
    FOR VALUES IN ('short') PARTITION BY RANGE (settled_at);
CREATE TABLE bridge.settled_messages_standard PARTITION OF bridge.settled_messages
    FOR VALUES IN ('standard') PARTITION BY RANGE (settled_at);
CREATE TABLE bridge.settled_messages_long PARTITION OF bridge.settled_messages
    FOR VALUES IN ('long') PARTITION BY RANGE (settled_at);
-- Settling must not fail because nobody made this week's partition: these take what has none.
CREATE TABLE bridge.settled_messages_short_default PARTITION OF bridge.settled_messages_short DEFAULT;
CREATE TABLE bridge.settled_messages_standard_default PARTITION OF bridge.settled_messages_standard DEFAULT;
CREATE TABLE bridge.settled_messages_long_default PARTITION OF bridge.settled_messages_long DEFAULT;

-- One row per accepted key; `body_hash` (keyed by the organization's data key, so that it tells nothing about the
-- body) tells a repeat from a different body under the same key.
CREATE TABLE bridge.idempotency_keys (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    endpoint        text NOT NULL,
    key_hash        bytea NOT NULL,
    body_hash       bytea NOT NULL,
    message_id      text NOT NULL,
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (organization_id, environment, endpoint, key_hash)
);
CREATE INDEX idempotency_keys_expires ON bridge.idempotency_keys (expires_at);

-- What was refused at the door: no payload, no secret; counted per minute and reason under flood.
CREATE TABLE bridge.refusals (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    environment     text NOT NULL,
    endpoint        text NOT NULL,
    code            text NOT NULL,
    minute          timestamptz NOT NULL,
    count           bigint NOT NULL DEFAULT 1,
    last_at         timestamptz NOT NULL DEFAULT now(),
    last_detail     text NOT NULL DEFAULT '',
    PRIMARY KEY (organization_id, environment, endpoint, code, minute)
);
CREATE INDEX refusals_minute ON bridge.refusals (minute);

-- ---------------------------------------------------------------- partitions
-- Partitions are made and dropped by the owner; the relay role may ask for exactly these two things.

-- Make the partition of a retention class for [from_day, to_day) unless it exists; true when it was made. What the
-- default partition already took for these days moves into it.
CREATE FUNCTION bridge.make_settled_partition(class text, from_day date, to_day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '5s'
AS $$
DECLARE
    parent   text := 'settled_messages_' || class;
    fallback text := parent || '_default';
    child    text := parent || '_' || to_char(from_day, 'YYYYMMDD');
    strays   boolean;
BEGIN
    IF class NOT IN ('short', 'standard', 'long') OR to_day <= from_day THEN
        RAISE EXCEPTION 'no retention class % or no days between % and %', class, from_day, to_day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(4201917003);
    IF to_regclass(format('bridge.%I', child)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE bridge.%I IN ACCESS EXCLUSIVE MODE', fallback);
    EXECUTE format('CREATE TABLE bridge.%I (LIKE bridge.%I INCLUDING ALL)', child, parent);
    -- The owner is subject to forced row-level security like everybody: for the move, and no longer, it is not.
    EXECUTE format('ALTER TABLE bridge.%I NO FORCE ROW LEVEL SECURITY', fallback);
    EXECUTE format('SELECT EXISTS (SELECT FROM bridge.%I WHERE settled_at >= %L AND settled_at < %L)',
                   fallback, from_day::timestamptz, to_day::timestamptz) INTO strays;
    IF strays THEN
        EXECUTE format('WITH moved AS (DELETE FROM bridge.%I WHERE settled_at >= %L AND settled_at < %L RETURNING *)'
                       ' INSERT INTO bridge.%I SELECT * FROM moved',
                       fallback, from_day::timestamptz, to_day::timestamptz, child);
    END IF;
    EXECUTE format('ALTER TABLE bridge.%I FORCE ROW LEVEL SECURITY', fallback);
    EXECUTE format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', child);
    EXECUTE format('ALTER TABLE bridge.%I ATTACH PARTITION bridge.%I FOR VALUES FROM (%L) TO (%L)',
                   parent, child, from_day::timestamptz, to_day::timestamptz);
    RETURN true;
END $$;

-- Drop the partitions of a retention class that end at or before `before`; gives the names of those dropped.
CREATE FUNCTION bridge.drop_settled_partitions(class text, before timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '5s'
AS $$
DECLARE
    child record;
BEGIN
    IF class NOT IN ('short', 'standard', 'long') OR before > now() THEN
        RAISE EXCEPTION 'no retention class %, or % is in the future', class, before
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(4201917003);
    FOR child IN
        SELECT c.relname, substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz AS ends
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass('bridge.settled_messages_' || class)
          AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
    LOOP
        IF child.ends <= before THEN
            EXECUTE format('DROP TABLE bridge.%I', child.relname);
            RETURN NEXT child.relname;
        END IF;
    END LOOP;
    -- What came back from legal hold after its own partition was dropped.
    IF pg_relation_size(format('bridge.settled_messages_%s_default', class)) > 0 THEN
        EXECUTE format('ALTER TABLE bridge.settled_messages_%s_default NO FORCE ROW LEVEL SECURITY', class);
        EXECUTE format('DELETE FROM bridge.settled_messages_%s_default WHERE settled_at < %L', class, before);
        EXECUTE format('ALTER TABLE bridge.settled_messages_%s_default FORCE ROW LEVEL SECURITY', class);
    END IF;
END $$;

-- This week's and the next partitions, so that a fresh installation has them before the first maintenance run.
-- Ranges begin at multiples of their width since the epoch; inbox/retention.py holds the same widths.
SELECT bridge.make_settled_partition(class, first_day + n * width, first_day + (n + 1) * width)
FROM (VALUES ('short', 1), ('standard', 7), ('long', 91)) AS classes (class, width),
     LATERAL (SELECT date '1970-01-01' + (current_date - date '1970-01-01') / width * width) AS start (first_day),
     generate_series(0, 3) AS n;

-- ---------------------------------------------------------------- row-level security
-- Enabled and forced on every table and every partition. Without a policy for a role there are no rows for it:
-- partitions have none, so that they are reached through their parent only.
DO $$
DECLARE
    relation text;
BEGIN
    FOR relation IN
        SELECT c.relname FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'bridge'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'alembic_version'
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
    END LOOP;
    -- One organization at a time, as the transaction says; no organization, no rows.
    FOREACH relation IN ARRAY ARRAY[
        'environments', 'flow_versions', 'deployments', 'deployment_history', 'endpoints', 'endpoint_secrets',
        'connections', 'batches', 'messages', 'hand_overs', 'failures', 'settled_messages', 'idempotency_keys',
        'refusals']
    LOOP
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
    END LOOP;
    -- Messages of all organizations, and what is needed to know where they go.
    FOREACH relation IN ARRAY ARRAY[
        'batches', 'messages', 'hand_overs', 'failures', 'settled_messages', 'idempotency_keys', 'refusals']
    LOOP
        EXECUTE pg_catalog.format('CREATE POLICY relay ON bridge.%I TO bridge_relay USING (true) WITH CHECK (true)', relation);
    END LOOP;
    FOREACH relation IN ARRAY ARRAY[
        'organizations', 'environments', 'flow_versions', 'deployments', 'deployment_history', 'endpoints',
        'endpoint_secrets']
    LOOP
        EXECUTE pg_catalog.format('CREATE POLICY relay ON bridge.%I FOR SELECT TO bridge_relay USING (true)', relation);
    END LOOP;
    FOREACH relation IN ARRAY ARRAY['organizations', 'environments', 'memberships', 'data_keys']
    LOOP
        EXECUTE pg_catalog.format('CREATE POLICY platform ON bridge.%I TO bridge_platform USING (true) WITH CHECK (true)', relation);
    END LOOP;
    FOR relation IN
        SELECT c.relname FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'bridge'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_backup', relation);
        IF relation <> 'alembic_version' THEN
            EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        END IF;
    END LOOP;
END $$;

-- A person sees the memberships that are his own in whatever organization, and the organizations they name.
CREATE POLICY app ON bridge.memberships FOR SELECT TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization())
           OR user_name = (SELECT bridge.current_user_name()));
CREATE POLICY app ON bridge.organizations FOR SELECT TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization())
           OR EXISTS (SELECT FROM bridge.memberships m
                      WHERE m.organization_id = organizations.organization_id
                        AND m.user_name = (SELECT bridge.current_user_name())));

-- ---------------------------------------------------------------- grants
REVOKE ALL ON FUNCTION bridge.make_settled_partition, bridge.drop_settled_partitions FROM PUBLIC;
GRANT USAGE ON SCHEMA bridge TO bridge_app, bridge_relay, bridge_platform, bridge_backup;
GRANT EXECUTE ON FUNCTION bridge.make_settled_partition, bridge.drop_settled_partitions TO bridge_relay;

GRANT SELECT ON bridge.organizations, bridge.environments, bridge.memberships TO bridge_app;
-- A flow version and the history never change.
GRANT SELECT, INSERT ON bridge.flow_versions, bridge.deployment_history TO bridge_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.deployments, bridge.endpoints, bridge.endpoint_secrets,
    bridge.connections, bridge.messages, bridge.hand_overs TO bridge_app;
GRANT USAGE, SELECT ON SEQUENCE bridge.deployment_revision TO bridge_app;
GRANT SELECT, INSERT, UPDATE ON bridge.settled_messages, bridge.idempotency_keys TO bridge_app;
GRANT SELECT ON bridge.batches, bridge.failures, bridge.refusals TO bridge_app;

GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.batches, bridge.messages, bridge.hand_overs, bridge.failures,
    bridge.idempotency_keys, bridge.refusals TO bridge_relay;
GRANT SELECT, INSERT ON bridge.settled_messages TO bridge_relay;
GRANT SELECT ON bridge.organizations, bridge.environments, bridge.flow_versions, bridge.deployments,
    bridge.deployment_history, bridge.endpoints, bridge.endpoint_secrets TO bridge_relay;

GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.organizations, bridge.environments, bridge.memberships,
    bridge.data_keys TO bridge_platform;
GRANT SELECT ON SEQUENCE bridge.deployment_revision TO bridge_backup;
