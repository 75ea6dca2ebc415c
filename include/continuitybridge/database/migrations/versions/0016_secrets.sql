-- Typed secrets: what they are, and their versions. `secrets/types.py` says what each type holds; all of it is in
-- the ciphertext, which is bound to organization, environment, name and version.
CREATE TABLE bridge.secrets (
    organization_id   uuid NOT NULL,
    environment       text NOT NULL,
    name              text NOT NULL CHECK (name ~ '^[a-z][a-z0-9_-]{0,63}$'),
    type              text NOT NULL CHECK (type ~ '^[a-z0-9_]+$'),
    description       text NOT NULL DEFAULT '',
    enabled           boolean NOT NULL DEFAULT true,
    current_version   integer NOT NULL DEFAULT 0,
    last_version      integer NOT NULL DEFAULT 0,
    rotate_every_days integer CHECK (rotate_every_days > 0),
    rotation_due_at   timestamptz,
    last_rotated_at   timestamptz NOT NULL DEFAULT now(),
    -- Which reason and version somebody was reminded of.
    reminded_of       text NOT NULL DEFAULT '',
    updated_at        timestamptz NOT NULL DEFAULT now(),
    updated_by        text NOT NULL,
    PRIMARY KEY (organization_id, environment, name),
    FOREIGN KEY (organization_id, environment) REFERENCES bridge.environments ON DELETE CASCADE
);

CREATE TABLE bridge.secret_versions (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    name            text NOT NULL,
    version         integer NOT NULL CHECK (version > 0),
    ciphertext      bytea NOT NULL,
    expires_at      timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    PRIMARY KEY (organization_id, environment, name, version),
    FOREIGN KEY (organization_id, environment, name) REFERENCES bridge.secrets ON DELETE CASCADE
);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['secrets', 'secret_versions'] LOOP
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
