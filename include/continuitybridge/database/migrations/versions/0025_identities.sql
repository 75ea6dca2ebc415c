-- Whom people are to identity providers (OpenID Connect): `issuer` and `subject` together are somebody for ever, an
-- e-mail address is not. At one issuer a person is one. They belong to no organization, so that `organization_id` is
-- the nil UUID.
CREATE TABLE bridge.identities (
    organization_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
                    CHECK (organization_id = '00000000-0000-0000-0000-000000000000'),
    issuer          text NOT NULL,
    subject         text NOT NULL CHECK (subject <> ''),
    user_name       text NOT NULL CHECK (user_name <> ''),
    linked_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, subject),
    UNIQUE (user_name, issuer)
);

ALTER TABLE bridge.identities ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY platform ON bridge.identities TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.identities FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.identities TO bridge_platform;
GRANT SELECT ON bridge.identities TO bridge_backup;
