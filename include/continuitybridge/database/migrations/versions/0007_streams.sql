-- Concurrency of flows and the order of messages, and indexes by which stream workers claim.

ALTER TABLE bridge.flow_versions
    ADD COLUMN concurrency integer GENERATED ALWAYS AS ((plan ->> 'concurrency')::integer) STORED,
    ADD COLUMN ordering_key text GENERATED ALWAYS AS (plan -> 'ordering' ->> 'key') STORED,
    ADD COLUMN holds_order boolean NOT NULL
        GENERATED ALWAYS AS (coalesce(plan -> 'ordering' ->> 'after_dead_letter' = 'hold', false)) STORED;

-- `holds_order`: as a dead letter it keeps those behind it in its ordering key waiting. `behind`: it was found to wait
-- behind another message of its key, and is offered to nobody until that one ends.
ALTER TABLE bridge.messages
    ADD COLUMN holds_order boolean NOT NULL DEFAULT false,
    ADD COLUMN behind boolean NOT NULL DEFAULT false;

-- Who may be in front of a message: every unsettled one of its key that was accepted before it, ...
CREATE INDEX messages_ordered
    ON bridge.messages (organization_id, environment, flow, ordering_key, accepted_at, message_id)
    WHERE ordering_key IS NOT NULL AND (state <> 'dead' OR holds_order);
-- ... and any that has begun.
CREATE INDEX messages_ordered_begun ON bridge.messages (organization_id, environment, flow, ordering_key)
    WHERE ordering_key IS NOT NULL AND state IN ('claimed', 'handed_over', 'waiting');
CREATE INDEX messages_behind
    ON bridge.messages (organization_id, environment, flow, ordering_key, accepted_at, message_id) WHERE behind;

-- When a message ends, or gives up its turn, the first of those behind it is offered again; in batch mode as many as
-- a batch may hold, which runs them one by one. Whoever sets `behind` holds a lock of the row in front meanwhile, so
-- that this here comes after it.
CREATE FUNCTION bridge.offer_next_in_order() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE bridge.messages m SET behind = false
    FROM (SELECT n.organization_id, n.message_id FROM bridge.messages n
          WHERE n.organization_id = OLD.organization_id AND n.environment = OLD.environment AND n.flow = OLD.flow
            AND n.ordering_key = OLD.ordering_key AND n.behind
          ORDER BY n.accepted_at, n.message_id LIMIT CASE OLD.mode WHEN 'batch' THEN 500 ELSE 1 END) AS first
    WHERE m.organization_id = first.organization_id AND m.message_id = first.message_id;
    RETURN NULL;
END $$;
CREATE TRIGGER offer_next_after_delete AFTER DELETE ON bridge.messages
    FOR EACH ROW WHEN (OLD.ordering_key IS NOT NULL) EXECUTE FUNCTION bridge.offer_next_in_order();
CREATE TRIGGER offer_next_after_update AFTER UPDATE OF state ON bridge.messages
    FOR EACH ROW WHEN (OLD.ordering_key IS NOT NULL AND OLD.state <> NEW.state
                       AND (NEW.state = 'dead' OR (OLD.state = 'claimed' AND NEW.state = 'accepted')))
    EXECUTE FUNCTION bridge.offer_next_in_order();

DROP INDEX bridge.messages_ready;
CREATE INDEX messages_ready ON bridge.messages (organization_id, environment, flow, version, available_at)
    WHERE state = 'accepted' AND batch_id IS NULL AND NOT behind;
CREATE INDEX messages_stream ON bridge.messages (organization_id, environment, flow, available_at)
    WHERE state = 'accepted' AND batch_id IS NULL AND NOT behind AND mode = 'stream';
CREATE INDEX hand_overs_stream ON bridge.hand_overs (organization_id, environment, flow, available_at)
    WHERE state = 'available' AND batch_id IS NULL AND mode = 'stream';

-- By flow, to know how many of it are under way; what is claimed at one time is little enough to look through for
-- leases that ran out.
DROP INDEX bridge.messages_lease, bridge.hand_overs_lease;
CREATE INDEX messages_claimed ON bridge.messages (organization_id, environment, flow, lease_until)
    WHERE state = 'claimed';
CREATE INDEX hand_overs_claimed ON bridge.hand_overs (organization_id, environment, flow, lease_until)
    WHERE state = 'claimed';
