DROP TABLE bridge.replies;
DROP FUNCTION bridge.make_replies_partition, bridge.drop_replies_partitions;
ALTER TABLE bridge.messages DROP COLUMN reply_until;
