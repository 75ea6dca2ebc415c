-- The nodes of the flow from which something can come to a group: the gathering one and all that lead to it. What is
-- under way elsewhere in the flow is not awaited. NULL: not known, so anything may come.
ALTER TABLE bridge.wait_groups ADD COLUMN awaits text[];
