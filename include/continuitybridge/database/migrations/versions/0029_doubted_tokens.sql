-- Since when an authorization server refuses a client whose secret stands in a store outside: of the two places one is
-- changed first, so that for a while the refusal does not stand.
ALTER TABLE bridge.tokens ADD COLUMN doubted_since timestamptz;
