-- Answers for callers who wait for their message's result (`reply: result`).

-- Until when the caller of the message is held; null when nobody waits. Whoever settles or buries a message that has
-- it writes an answer in the same transaction.
ALTER TABLE bridge.messages ADD COLUMN reply_until timestamptz;

-- `status` and `content` (headers and body, encrypted) are an answer; status 202 without content says that the message
-- goes on without one. `code` is the code of a failure; `content` may then say what the caller may know of it.
-- Not `ready`: a part of the message gave it, and others are under way. `place` is that part's place among its
-- siblings (the numbers behind the message's id); when the message is done, the first becomes ready. Written once per
-- life of a message: `replays` says which. Partitioned by time, so that cleaning up is a drop.
CREATE TABLE bridge.replies (
    organization_id uuid NOT NULL,
    message_id      text NOT NULL,
    reply_id        uuid NOT NULL,
    status          smallint CHECK (status BETWEEN 200 AND 599),
    code            text,
    content         bytea,
    place           integer[],
    ready           boolean NOT NULL,
    replays         integer NOT NULL,
    written_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, message_id, reply_id, written_at),
    CHECK ((status IS NULL) <> (code IS NULL))
) PARTITION BY RANGE (written_at);
ALTER TABLE bridge.replies ALTER content SET STORAGE EXTERNAL;
CREATE TABLE bridge.replies_default PARTITION OF bridge.replies DEFAULT;

-- Make the partition for [from_day, to_day) unless it exists; true when it was made. What the default partition
-- already took for these days moves into it.
CREATE FUNCTION bridge.make_replies_partition(from_day date, to_day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '5s'
AS $$
DECLARE
    child text := 'replies_' || to_char(from_day, 'YYYYMMDD');
BEGIN
    IF to_day <= from_day THEN
        RAISE EXCEPTION 'no days between % and %', from_day, to_day USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(4201917004);
    IF to_regclass(format('bridge.%I', child)) IS NOT NULL THEN
        RETURN false;
    END IF;
    LOCK TABLE bridge.replies_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE bridge.%I (LIKE bridge.replies INCLUDING ALL)', child);
    -- The owner is subject to forced row-level security like everybody: for the move, and no longer, it is not.
    ALTER TABLE bridge.replies_default NO FORCE ROW LEVEL SECURITY;
    EXECUTE format('WITH moved AS (DELETE FROM bridge.replies_default WHERE written_at >= %L AND written_at < %L'
                   ' RETURNING *) INSERT INTO bridge.%I SELECT * FROM moved',
                   from_day::timestamptz, to_day::timestamptz, child);
    ALTER TABLE bridge.replies_default FORCE ROW LEVEL SECURITY;
    EXECUTE format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', child);
    EXECUTE format('ALTER TABLE bridge.replies ATTACH PARTITION bridge.%I FOR VALUES FROM (%L) TO (%L)',
                   child, from_day::timestamptz, to_day::timestamptz);
    RETURN true;
END $$;

-- Drop the partitions that end at or before `before`, and what the default partition has from before it; gives the
-- names of those dropped.
CREATE FUNCTION bridge.drop_replies_partitions(before timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '5s'
AS $$
DECLARE
    child record;
BEGIN
    IF before > now() THEN
        RAISE EXCEPTION '% is in the future', before USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(4201917004);
    FOR child IN
        SELECT c.relname, substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz AS ends
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'bridge.replies'::regclass AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
    LOOP
        IF child.ends <= before THEN
            EXECUTE format('DROP TABLE bridge.%I', child.relname);
            RETURN NEXT child.relname;
        END IF;
    END LOOP;
    IF pg_relation_size('bridge.replies_default') > 0 THEN
        ALTER TABLE bridge.replies_default NO FORCE ROW LEVEL SECURITY;
        DELETE FROM bridge.replies_default WHERE written_at < before;
        ALTER TABLE bridge.replies_default FORCE ROW LEVEL SECURITY;
    END IF;
END $$;

SELECT bridge.make_replies_partition(current_date + n, current_date + n + 1) FROM generate_series(0, 3) AS n;

ALTER TABLE bridge.replies ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.replies_default ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.replies TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY relay ON bridge.replies TO bridge_relay USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.replies FOR SELECT TO bridge_backup USING (true);

REVOKE ALL ON FUNCTION bridge.make_replies_partition, bridge.drop_replies_partitions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.make_replies_partition, bridge.drop_replies_partitions TO bridge_relay;
GRANT SELECT, DELETE ON bridge.replies TO bridge_app;
GRANT SELECT, INSERT, UPDATE ON bridge.replies TO bridge_relay;
GRANT SELECT ON bridge.replies TO bridge_backup;
