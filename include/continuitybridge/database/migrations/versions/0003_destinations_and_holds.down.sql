DROP FUNCTION bridge.draining;
DROP INDEX bridge.messages_waits_for, bridge.hand_overs_waits_for;
ALTER TABLE bridge.messages DROP COLUMN waits_for;
ALTER TABLE bridge.hand_overs DROP COLUMN waits_for;
DROP TABLE bridge.flow_holds, bridge.destinations;
