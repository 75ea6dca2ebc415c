DROP INDEX bridge.messages_claimed, bridge.hand_overs_claimed, bridge.messages_stream, bridge.hand_overs_stream,
    bridge.messages_ready;
CREATE INDEX messages_lease ON bridge.messages (lease_until) WHERE state = 'claimed';
CREATE INDEX hand_overs_lease ON bridge.hand_overs (lease_until) WHERE state = 'claimed';
CREATE INDEX messages_ready ON bridge.messages (organization_id, environment, flow, version, available_at)
    WHERE state = 'accepted' AND batch_id IS NULL;
DROP TRIGGER offer_next_after_update ON bridge.messages;
DROP TRIGGER offer_next_after_delete ON bridge.messages;
DROP FUNCTION bridge.offer_next_in_order;
ALTER TABLE bridge.messages DROP COLUMN behind, DROP COLUMN holds_order;
ALTER TABLE bridge.flow_versions DROP COLUMN holds_order, DROP COLUMN ordering_key, DROP COLUMN concurrency;
