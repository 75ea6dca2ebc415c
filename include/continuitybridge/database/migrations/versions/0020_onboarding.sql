-- Onboarding makes an organization and invites its first administrator in one transaction.
GRANT INSERT, UPDATE (revoked_at, revoked_by) ON bridge.invitations TO bridge_platform;

-- That a person whose organizations are several entered one, and which of them he chose last.
CREATE TABLE bridge.visits (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    user_name       text NOT NULL,
    seen_at         timestamptz NOT NULL DEFAULT now(),
    chosen_at       timestamptz,
    PRIMARY KEY (organization_id, user_name)
);
CREATE INDEX visits_user_name ON bridge.visits (user_name);

ALTER TABLE bridge.visits ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.visits TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
-- A person sees his own, wherever.
CREATE POLICY own ON bridge.visits FOR SELECT TO bridge_app
    USING (user_name = (SELECT bridge.current_user_name())
           OR organization_id = (SELECT bridge.current_organization()));
CREATE POLICY backup ON bridge.visits FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE (seen_at, chosen_at) ON bridge.visits TO bridge_app;
GRANT SELECT ON bridge.visits TO bridge_backup;
