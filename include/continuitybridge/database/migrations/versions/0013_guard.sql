-- Addresses that are refused: at an organization's webhooks, or everywhere where the organization is the nil UUID.
-- `times` counts blocks that came one after the other; `until` null: until it is lifted.
CREATE TABLE bridge.guard_blocks (
    organization_id uuid NOT NULL,
    owner_id        uuid GENERATED ALWAYS AS (nullif(organization_id, '00000000-0000-0000-0000-000000000000'))
                    STORED REFERENCES bridge.organizations ON DELETE CASCADE,
    address         text NOT NULL CHECK (address <> ''),
    reason          text NOT NULL,
    times           integer NOT NULL DEFAULT 1 CHECK (times > 0),
    blocked_at      timestamptz NOT NULL DEFAULT now(),
    until           timestamptz,
    blocked_by      text NOT NULL,
    PRIMARY KEY (organization_id, address)
);
CREATE INDEX guard_blocks_owner ON bridge.guard_blocks (owner_id) WHERE owner_id IS NOT NULL;

-- What an organization wants of the guard before its webhooks, and its own limits; null: as the platform's settings
-- say. Limits are the platform's to set.
CREATE TABLE bridge.guard_policies (
    organization_id uuid PRIMARY KEY REFERENCES bridge.organizations ON DELETE CASCADE,
    mode            text CHECK (mode IN ('enforce', 'detect', 'off')),
    block_bots      boolean,
    allowed         text[] NOT NULL DEFAULT '{}',
    webhooks_limit  text,
    api_limit       text
);

ALTER TABLE bridge.guard_blocks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.guard_policies ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.guard_blocks TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY app ON bridge.guard_policies TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY platform ON bridge.guard_blocks TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY platform ON bridge.guard_policies TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.guard_blocks FOR SELECT TO bridge_backup USING (true);
CREATE POLICY backup ON bridge.guard_policies FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.guard_blocks TO bridge_app, bridge_platform;
GRANT SELECT, INSERT (organization_id, mode, block_bots, allowed), UPDATE (mode, block_bots, allowed)
    ON bridge.guard_policies TO bridge_app;
GRANT SELECT, INSERT (organization_id, webhooks_limit, api_limit), UPDATE (webhooks_limit, api_limit)
    ON bridge.guard_policies TO bridge_platform;
GRANT SELECT ON bridge.guard_blocks, bridge.guard_policies TO bridge_backup;
