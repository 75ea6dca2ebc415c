-- Data keys may be the platform's own too (nil UUID): for what belongs to no organization, or to a person in several.
ALTER TABLE bridge.data_keys DROP CONSTRAINT data_keys_organization_id_fkey;
ALTER TABLE bridge.data_keys
    ADD COLUMN owner_id uuid GENERATED ALWAYS AS (nullif(organization_id, '00000000-0000-0000-0000-000000000000'))
        STORED REFERENCES bridge.organizations ON DELETE CASCADE;
CREATE INDEX data_keys_owner ON bridge.data_keys (owner_id) WHERE owner_id IS NOT NULL;

-- Mails on their way out: an organization's, or the platform's (nil UUID). Whom to, subject and text are encrypted,
-- and gone when the mail is sent or given up.
CREATE TABLE bridge.mails (
    organization_id uuid NOT NULL,
    owner_id        uuid GENERATED ALWAYS AS (nullif(organization_id, '00000000-0000-0000-0000-000000000000'))
                    STORED REFERENCES bridge.organizations ON DELETE CASCADE,
    mail_id         uuid NOT NULL,
    kind            text NOT NULL CHECK (kind <> ''),
    content         bytea,
    status          text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'sent', 'dead')),
    tries           integer NOT NULL DEFAULT 0 CHECK (tries >= 0),
    created_at      timestamptz NOT NULL DEFAULT now(),
    due_at          timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    problem         text,
    PRIMARY KEY (organization_id, mail_id),
    CHECK ((status = 'waiting') = (content IS NOT NULL)),
    CHECK ((status = 'waiting') = (ended_at IS NULL))
);
CREATE INDEX mails_owner ON bridge.mails (owner_id) WHERE owner_id IS NOT NULL;
CREATE INDEX mails_due ON bridge.mails (due_at) WHERE status = 'waiting';
CREATE INDEX mails_ended ON bridge.mails (ended_at) WHERE status <> 'waiting';

ALTER TABLE bridge.mails ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.mails TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY platform ON bridge.mails TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.mails FOR SELECT TO bridge_backup USING (true);
-- What is written for an organization is written by whoever serves it; sending is the platform's.
GRANT SELECT (organization_id, mail_id, kind, status, tries, created_at, due_at, expires_at, ended_at, problem),
    INSERT (organization_id, mail_id, kind, content, expires_at) ON bridge.mails TO bridge_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.mails TO bridge_platform;
GRANT SELECT ON bridge.mails TO bridge_backup;
