ALTER TABLE bridge.wait_groups DROP COLUMN awaits;
