DROP TABLE bridge.guard_policies;
DROP TABLE bridge.guard_blocks;
