DROP FUNCTION bridge.settled_by_keys;
DROP POLICY lookup ON bridge.messages;
DROP POLICY lookup ON bridge.settled_messages;
DROP INDEX bridge.settled_messages_flow_id;
