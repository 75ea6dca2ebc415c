-- What stands in the payload store. The row is committed before its object is written, and removed after the object,
-- so that no object is unknown. No foreign key to messages: a message leaves the hot table when it is settled.
CREATE TABLE bridge.payload_objects (
    organization_id uuid NOT NULL,
    object_id       uuid NOT NULL,
    message_id      text NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('message', 'part')),
    key             text NOT NULL,
    size_bytes      bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    due_at          timestamptz NOT NULL,
    PRIMARY KEY (organization_id, object_id)
);
CREATE INDEX payload_objects_due ON bridge.payload_objects (due_at);

ALTER TABLE bridge.payload_objects ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.payload_objects TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY relay ON bridge.payload_objects TO bridge_relay USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.payload_objects FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT ON bridge.payload_objects TO bridge_app;
-- Who cancels messages answers those who wait for them.
GRANT INSERT, UPDATE ON bridge.replies TO bridge_app;
GRANT SELECT, UPDATE, DELETE ON bridge.payload_objects TO bridge_relay;
GRANT SELECT ON bridge.payload_objects TO bridge_backup;
