-- People who sign in, by their user name; they belong to no organization, so that `organization_id` is the nil UUID.
-- Only the platform role reads any of this. `sessions_since`: what was given before holds no more. `totp_secret` is
-- encrypted; `totp_since` is null until the person has shown a code; `totp_step` is the last step (RFC 6238) whose
-- code was used.
CREATE TABLE bridge.people (
    organization_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
                    CHECK (organization_id = '00000000-0000-0000-0000-000000000000'),
    user_name       text PRIMARY KEY CHECK (user_name <> ''),
    sessions_since  timestamptz,
    totp_secret     bytea,
    totp_since      timestamptz,
    totp_step       bigint NOT NULL DEFAULT 0,
    CHECK (totp_since IS NULL OR totp_secret IS NOT NULL)
);

-- Codes for whoever lost the second factor, known by their hash; each holds once.
CREATE TABLE bridge.recovery_codes (
    organization_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
                    CHECK (organization_id = '00000000-0000-0000-0000-000000000000'),
    user_name       text NOT NULL REFERENCES bridge.people ON DELETE CASCADE,
    hash            bytea NOT NULL CHECK (octet_length(hash) = 32),
    used_at         timestamptz,
    PRIMARY KEY (user_name, hash)
);

-- Links that sign a person in or let him choose a new password, and forms of who has shown his password: known by their hash (256 random bits need no slow
-- one), each holds once.
CREATE TABLE bridge.sign_in_tokens (
    organization_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
                    CHECK (organization_id = '00000000-0000-0000-0000-000000000000'),
    hash            bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    purpose         text NOT NULL CHECK (purpose IN ('link', 'reset', 'enrol')),
    user_name       text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    used_at         timestamptz
);
CREATE INDEX sign_in_tokens_user_name ON bridge.sign_in_tokens (user_name);
CREATE INDEX sign_in_tokens_expires_at ON bridge.sign_in_tokens (expires_at);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['people', 'recovery_codes', 'sign_in_tokens'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
        EXECUTE pg_catalog.format('CREATE POLICY platform ON bridge.%I TO bridge_platform USING (true) WITH CHECK (true)', relation);
        EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.%I TO bridge_platform', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_backup', relation);
    END LOOP;
END
$$;
