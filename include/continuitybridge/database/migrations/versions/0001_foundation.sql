-- Schema, roles' grants and row-level security of the foundation.
-- Roles are made beforehand (they are cluster-wide): bridge_owner owns, bridge_app serves requests of people and
-- of one organization at a time, bridge_relay moves messages across organizations, bridge_platform manages
-- organizations and memberships, bridge_backup reads everything.

CREATE OR REPLACE FUNCTION bridge.current_organization() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT nullif(current_setting('bridge.organization_id', true), '')::uuid $$;

CREATE OR REPLACE FUNCTION bridge.current_user_name() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT nullif(current_setting('bridge.user_name', true), '') $$;

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
    slug            text NOT NULL CHECK (slug ~ '^[a-z0-9][a-z0-9_-]{0,63}$'),
    flow            text NOT NULL,
    trigger_id      text NOT NULL,
    verification    text NOT NULL,
    settings        jsonb NOT NULL DEFAULT '{}',
    status          text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    revision        bigint NOT NULL DEFAULT nextval('bridge.deployment_revision'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, environment, slug),
    FOREIGN KEY (organization_id, environment, flow)
        REFERENCES bridge.deployments (organization_id, environment, flow) ON DELETE CASCADE
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
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    settled_at      timestamptz,
    PRIMARY KEY (organization_id, batch_id),
    UNIQUE (dag_id, run_id)
);
CREATE INDEX batches_open ON bridge.batches (created_at) WHERE status IN ('created', 'started');
CREATE INDEX batches_flow_open ON bridge.batches (organization_id, environment, flow) WHERE status IN ('created', 'started');

-- Hot table: everything unsettled, and dead letters until somebody decides.
CREATE TABLE bridge.messages (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    message_id      text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    source          text NOT NULL CHECK (source IN ('webhook', 'api', 'schedule', 'manual', 'poller', 'replay', 'flow')),
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
    attempts        integer NOT NULL DEFAULT 0,
    epoch           bigint NOT NULL DEFAULT 0,
    lease_owner     text,
    lease_until     timestamptz,
    available_at    timestamptz NOT NULL DEFAULT now(),
    batch_id        text,
    resume_at       jsonb,
    trace           jsonb NOT NULL DEFAULT '[]',
    retention_class text NOT NULL DEFAULT 'standard',
    legal_hold      boolean NOT NULL DEFAULT false,
    accepted_at     timestamptz NOT NULL DEFAULT now(),
    dead_at         timestamptz,
    PRIMARY KEY (organization_id, message_id),
    FOREIGN KEY (organization_id, batch_id) REFERENCES bridge.batches
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX messages_ready ON bridge.messages (available_at, organization_id, environment, flow)
    WHERE state = 'accepted' AND batch_id IS NULL;
CREATE INDEX messages_batch ON bridge.messages (organization_id, batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX messages_lease ON bridge.messages (lease_until) WHERE state = 'claimed';
CREATE INDEX messages_dead ON bridge.messages (organization_id, environment, flow, dead_at) WHERE state = 'dead';
CREATE INDEX messages_parent ON bridge.messages (organization_id, parent_id) WHERE parent_id IS NOT NULL;

-- What crosses from one stage to the next, until the message is settled.
CREATE TABLE bridge.hand_overs (
    organization_id uuid NOT NULL,
    message_id      text NOT NULL,
    hand_over_id    text NOT NULL,
    stage           text NOT NULL,
    node_id         text NOT NULL,
    payload         bytea NOT NULL,
    done            boolean NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, message_id, hand_over_id, stage, node_id),
    FOREIGN KEY (organization_id, message_id) REFERENCES bridge.messages ON DELETE CASCADE
);

-- Why a message failed, with what triage needs; the context is encrypted like a payload.
CREATE TABLE bridge.failures (
    organization_id uuid NOT NULL,
    message_id      text NOT NULL,
    failure_id      uuid NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    node_id         text NOT NULL,
    node_type       text NOT NULL,
    code            text NOT NULL,
    verdict         text NOT NULL CHECK (verdict IN ('transient', 'terminal')),
    attempt         integer NOT NULL,
    context         bytea NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, failure_id)
);
CREATE INDEX failures_message ON bridge.failures (organization_id, message_id);
CREATE INDEX failures_at ON bridge.failures (organization_id, at);

-- Settled messages: partitioned by retention class, then by time, so that cleaning up is a drop.
CREATE TABLE bridge.settled_messages (
    organization_id uuid NOT NULL,
    message_id      text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    version         text NOT NULL,
    source          text NOT NULL,
    endpoint        text,
    result          text NOT NULL CHECK (result IN ('done', 'skipped', 'dead')),
    payload         bytea,
    headers         bytea,
    content_type    text NOT NULL,
    size_bytes      integer NOT NULL,
    keys            jsonb NOT NULL DEFAULT '{}',
    parent_id       text,
    generation      integer NOT NULL,
    attempts        integer NOT NULL,
    batch_id        text,
    trace           jsonb NOT NULL DEFAULT '[]',
    retention_class text NOT NULL,
    accepted_at     timestamptz NOT NULL,
    settled_at      timestamptz NOT NULL DEFAULT now()
) PARTITION BY LIST (retention_class);
CREATE TABLE bridge.settled_messages_standard PARTITION OF bridge.settled_messages
    FOR VALUES IN ('standard') PARTITION BY RANGE (settled_at);
CREATE TABLE bridge.settled_messages_standard_default PARTITION OF bridge.settled_messages_standard DEFAULT;
CREATE TABLE bridge.settled_messages_held PARTITION OF bridge.settled_messages FOR VALUES IN ('legal_hold');
CREATE INDEX settled_messages_id ON bridge.settled_messages (organization_id, message_id);
CREATE INDEX settled_messages_flow ON bridge.settled_messages (organization_id, environment, flow, settled_at);
CREATE INDEX settled_messages_keys ON bridge.settled_messages USING gin (keys jsonb_path_ops);

-- One row per accepted key; `body_hash` tells a repeat from a different body under the same key.
CREATE TABLE bridge.idempotency_keys (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
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
