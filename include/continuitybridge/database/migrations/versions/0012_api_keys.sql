-- Keys for programs, each of one organization: what they are is known by their hash only (256 random bits need no
-- slow one).
CREATE TABLE bridge.api_keys (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    key_id          uuid NOT NULL,
    hash            bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    name            text NOT NULL CHECK (name <> ''),
    beginning       text NOT NULL,
    user_name       text NOT NULL,
    scope           text NOT NULL CHECK (scope IN ('read', 'write')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    expires_at      timestamptz NOT NULL,
    last_used_at    timestamptz,
    revoked_at      timestamptz,
    revoked_by      text,
    PRIMARY KEY (organization_id, key_id),
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE UNIQUE INDEX api_keys_name ON bridge.api_keys (organization_id, name) WHERE revoked_at IS NULL;

ALTER TABLE bridge.api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.api_keys TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY platform ON bridge.api_keys TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.api_keys FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE (revoked_at, revoked_by) ON bridge.api_keys TO bridge_app;
-- Who a key belongs to is asked before its organization is known.
GRANT SELECT, UPDATE (last_used_at) ON bridge.api_keys TO bridge_platform;
GRANT SELECT ON bridge.api_keys TO bridge_backup;
