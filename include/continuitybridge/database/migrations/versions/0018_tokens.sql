-- Tokens that connections authenticate with, obtained from authorization servers and log-in pages. One row for each
-- connection that needs one; a removed connection takes its token along.
--
-- `attempt` counts the calls that were begun, `generation` is the attempt whose answer the stored token is: an answer
-- is stored only over one of an earlier attempt. `refreshing` is committed before a call: who finds it with a lapsed
-- lease knows that the answer of that attempt may be lost.
CREATE TABLE bridge.tokens (
    organization_id   uuid NOT NULL,
    environment       text NOT NULL,
    connection        text NOT NULL,
    state             text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'refreshing', 'reconnect')),
    attempt           bigint NOT NULL DEFAULT 0,
    generation        bigint NOT NULL DEFAULT 0 CHECK (generation <= attempt),
    revision          integer NOT NULL DEFAULT 0,
    grant_fingerprint bytea,
    ciphertext        bytea,
    renewable         boolean NOT NULL DEFAULT false,
    obtained_at       timestamptz,
    expires_at        timestamptz,
    lease_owner       text,
    lease_until       timestamptz,
    refused_at        timestamptz,
    failures          integer NOT NULL DEFAULT 0,
    retry_at          timestamptz,
    problem           text,
    PRIMARY KEY (organization_id, environment, connection),
    FOREIGN KEY (organization_id, environment, connection)
        REFERENCES bridge.connections (organization_id, environment, name) ON DELETE CASCADE,
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK ((state = 'refreshing') = (lease_owner IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX tokens_due ON bridge.tokens (expires_at) WHERE renewable AND state = 'active';
CREATE INDEX tokens_leased ON bridge.tokens (lease_until) WHERE state = 'refreshing';

-- Accounts that are being connected: what the person's browser brings back is looked up by the hash of `state`, used
-- once, and ends soon. `ciphertext` holds the code verifier or the device code.
CREATE TABLE bridge.token_connects (
    organization_id uuid NOT NULL,
    connect_id      uuid NOT NULL,
    environment     text NOT NULL,
    connection      text NOT NULL,
    revision        integer NOT NULL,
    user_name       text NOT NULL,
    state_hash      bytea,
    ciphertext      bytea NOT NULL,
    redirect_uri    text,
    status          text NOT NULL DEFAULT 'pending'
                    CHECK (status IN ('pending', 'connected', 'denied', 'expired', 'failed')),
    problem         text,
    interval_s      integer,
    poll_at         timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (organization_id, connect_id),
    FOREIGN KEY (organization_id, environment, connection)
        REFERENCES bridge.connections (organization_id, environment, name) ON DELETE CASCADE
);
CREATE UNIQUE INDEX token_connects_state ON bridge.token_connects (state_hash) WHERE state_hash IS NOT NULL;
CREATE INDEX token_connects_connection ON bridge.token_connects (organization_id, environment, connection);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['tokens', 'token_connects'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
        EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.%I TO bridge_app', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_backup', relation);
    END LOOP;
END
$$;
-- Which tokens are due, of all organizations, and nothing of what they are.
CREATE POLICY relay ON bridge.tokens FOR SELECT TO bridge_relay USING (true);
GRANT SELECT (organization_id, environment, connection, state, renewable, obtained_at, expires_at, lease_until,
              retry_at) ON bridge.tokens TO bridge_relay;
