-- How a hand-over that waited goes on: `how` and facts without content. Null for one that never waited.
ALTER TABLE bridge.hand_overs ADD COLUMN resume jsonb;
-- Whether groups or parts of this message stand in the tables below: only then is looked for them.
ALTER TABLE bridge.messages ADD COLUMN gathers boolean NOT NULL DEFAULT false;

-- What a hand-over in state waiting waits for. It has something to do from due_at on: its time is over, or what it
-- waited for has come (then it says so there and then). `summary`, what a person decides on, is encrypted.
CREATE TABLE bridge.waits (
    organization_id uuid NOT NULL,
    hand_over_id    uuid NOT NULL,
    message_id      text NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    node_id         text NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('group', 'person', 'flow')),
    group_id        uuid,
    member          text,
    position        integer NOT NULL DEFAULT 0,
    called_id       text,
    summary         bytea,
    until           timestamptz,
    due_at          timestamptz,
    announced_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, hand_over_id),
    FOREIGN KEY (organization_id, hand_over_id) REFERENCES bridge.hand_overs ON DELETE CASCADE,
    CHECK ((kind = 'group') = (group_id IS NOT NULL)),
    CHECK ((kind = 'flow') = (called_id IS NOT NULL))
);
ALTER TABLE bridge.waits ALTER summary SET STORAGE EXTERNAL;
CREATE INDEX waits_due ON bridge.waits (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX waits_group ON bridge.waits (organization_id, group_id, member) WHERE group_id IS NOT NULL;
CREATE INDEX waits_called ON bridge.waits (organization_id, called_id) WHERE called_id IS NOT NULL;
CREATE INDEX waits_person ON bridge.waits (organization_id, created_at) WHERE kind = 'person';
CREATE INDEX waits_unannounced ON bridge.waits (created_at) WHERE kind = 'person' AND announced_at IS NULL;

-- Messages that wait for each other at one node under one key. Within one message (message_id, scope) they vanish
-- with it; across messages they are remembered until forget_at after they have gone on, so that a late one is told
-- from the first of the next group. The key itself is not kept: key_hash is keyed by the organization's data key.
CREATE TABLE bridge.wait_groups (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    flow            text NOT NULL,
    node_id         text NOT NULL,
    key_hash        bytea NOT NULL,
    group_id        uuid NOT NULL,
    message_id      text,
    scope           text,
    holds           boolean NOT NULL DEFAULT false,
    need            integer NOT NULL,
    becomes         text,
    late_s          double precision NOT NULL DEFAULT 0,
    how             text CHECK (how IN ('complete', 'ended', 'timeout')),
    until           timestamptz,
    due_at          timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    closed_at       timestamptz,
    forget_at       timestamptz,
    carrier_id      text,
    members         text[],
    PRIMARY KEY (organization_id, environment, flow, node_id, key_hash),
    CHECK ((message_id IS NULL) = (scope IS NULL))
);
CREATE UNIQUE INDEX wait_groups_id ON bridge.wait_groups (organization_id, group_id);
CREATE INDEX wait_groups_due ON bridge.wait_groups (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX wait_groups_message ON bridge.wait_groups (organization_id, message_id) WHERE message_id IS NOT NULL;
CREATE INDEX wait_groups_forget ON bridge.wait_groups (forget_at) WHERE forget_at IS NOT NULL;

-- What a resumed hand-over gets with it: the members of its group, the results of the flow it called. wait_id is
-- the group's id, or the calling hand-over's. They stay until the message that carries them (message_id) leaves
-- the hot table, so that it can be run again. `origin_id` is the message they were a part of, `place` what the
-- ciphertext is bound to.
CREATE TABLE bridge.wait_parts (
    organization_id uuid NOT NULL,
    wait_id         uuid NOT NULL,
    part_id         uuid NOT NULL,
    message_id      text NOT NULL,
    origin_id       text NOT NULL,
    child_id        text NOT NULL,
    member          text,
    position        integer NOT NULL DEFAULT 0,
    place           text NOT NULL,
    payload         bytea NOT NULL,
    PRIMARY KEY (organization_id, wait_id, part_id)
);
ALTER TABLE bridge.wait_parts ALTER payload SET STORAGE EXTERNAL;
CREATE INDEX wait_parts_message ON bridge.wait_parts (organization_id, message_id);
CREATE INDEX wait_parts_origin ON bridge.wait_parts (organization_id, origin_id);

-- A message that a flow was called with has ended, or died: who waits for it has something to do. A message that
-- gathered leaves nothing behind. As triggers, because a message ends in many ways.
CREATE FUNCTION bridge.message_left() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF OLD.source = 'flow' THEN
        UPDATE bridge.waits SET due_at = now()
        WHERE organization_id = OLD.organization_id AND called_id = OLD.message_id;
        IF FOUND THEN
            PERFORM pg_notify('bridge_due', '');
        END IF;
    END IF;
    IF TG_OP = 'DELETE' AND OLD.gathers THEN
        DELETE FROM bridge.wait_parts WHERE organization_id = OLD.organization_id AND message_id = OLD.message_id;
        DELETE FROM bridge.wait_groups WHERE organization_id = OLD.organization_id AND message_id = OLD.message_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER message_gone AFTER DELETE ON bridge.messages
    FOR EACH ROW WHEN (OLD.gathers OR OLD.source = 'flow') EXECUTE FUNCTION bridge.message_left();
CREATE TRIGGER message_died AFTER UPDATE OF state ON bridge.messages
    FOR EACH ROW WHEN (NEW.source = 'flow' AND NEW.state = 'dead' AND OLD.state <> 'dead')
    EXECUTE FUNCTION bridge.message_left();

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['waits', 'wait_groups', 'wait_parts']
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
        EXECUTE pg_catalog.format('CREATE POLICY relay ON bridge.%I TO bridge_relay USING (true) WITH CHECK (true)', relation);
        EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_backup', relation);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON bridge.%I TO bridge_relay', relation);
    END LOOP;
END $$;
-- Deciding, replaying, discarding: for people of the organization.
GRANT SELECT, UPDATE, DELETE ON bridge.waits, bridge.wait_groups, bridge.wait_parts TO bridge_app;
