-- Invitations: that somebody may become a member. What was sent him is known by its hash only (256 random bits need
-- no slow one); it holds once, until it expires or is revoked.
CREATE TABLE bridge.invitations (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    invitation_id   uuid NOT NULL,
    hash            bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    email           text NOT NULL CHECK (email <> '' AND email = lower(email)),
    role            text NOT NULL CHECK (role IN ('consultant', 'customer_admin', 'customer_user')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    expires_at      timestamptz NOT NULL,
    accepted_at     timestamptz,
    accepted_by     text,
    revoked_at      timestamptz,
    revoked_by      text,
    PRIMARY KEY (organization_id, invitation_id),
    CHECK ((accepted_at IS NULL) = (accepted_by IS NULL)),
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL)),
    CHECK (accepted_at IS NULL OR revoked_at IS NULL)
);
CREATE UNIQUE INDEX invitations_open ON bridge.invitations (organization_id, email)
    WHERE accepted_at IS NULL AND revoked_at IS NULL;

ALTER TABLE bridge.invitations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.invitations TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY platform ON bridge.invitations TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.invitations FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE (revoked_at, revoked_by) ON bridge.invitations TO bridge_app;
-- Whose an invitation is, is asked before its organization is known.
GRANT SELECT, UPDATE (accepted_at, accepted_by) ON bridge.invitations TO bridge_platform;
GRANT SELECT ON bridge.invitations TO bridge_backup;

-- Whoever is invited takes a member's place, as long as the invitation holds.
CREATE FUNCTION bridge.check_invitation_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint := bridge.limit_of(NEW.organization_id, 'members');
BEGIN
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('members', allowed, (
            SELECT count(*) FROM bridge.memberships m WHERE m.organization_id = NEW.organization_id) + (
            SELECT count(*) FROM bridge.invitations i
            WHERE i.organization_id = NEW.organization_id AND i.accepted_at IS NULL AND i.revoked_at IS NULL
              AND i.expires_at > now()));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.invitations
    FOR EACH ROW EXECUTE FUNCTION bridge.check_invitation_quota();
