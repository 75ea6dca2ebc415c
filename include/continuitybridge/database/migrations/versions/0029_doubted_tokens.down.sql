ALTER TABLE bridge.tokens DROP COLUMN doubted_since;
