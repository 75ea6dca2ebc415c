-- Deleting an organization. What stays of one: that it existed, who deleted it and when, the end of its trail and the
-- digest of what was exported. Its slug is not given again.
CREATE TABLE bridge.deletions (
    organization_id uuid PRIMARY KEY,
    slug            text NOT NULL UNIQUE,
    requested_at    timestamptz NOT NULL DEFAULT now(),
    requested_by    text NOT NULL,
    with_export     boolean NOT NULL,
    export_file     text,
    export_sha256   text CHECK (export_sha256 ~ '^[0-9a-f]{64}$'),
    exported_at     timestamptz,
    trail_events    bigint,
    trail_hash      text,
    finished_at     timestamptz,
    -- Of the deployments: whoever follows those learns that the organization is gone.
    revision        bigint,
    forgotten_at    timestamptz,
    CHECK ((exported_at IS NULL) = (export_sha256 IS NULL)),
    CHECK ((finished_at IS NULL) = (revision IS NULL))
);
CREATE INDEX deletions_revision ON bridge.deletions (revision) WHERE revision IS NOT NULL;

ALTER TABLE bridge.deletions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY platform ON bridge.deletions TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY relay ON bridge.deletions FOR SELECT TO bridge_relay USING (true);
CREATE POLICY backup ON bridge.deletions FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT ON bridge.deletions TO bridge_platform;
GRANT UPDATE (export_file, export_sha256, exported_at, trail_events, trail_hash, finished_at, revision, forgotten_at)
    ON bridge.deletions TO bridge_platform;
GRANT SELECT ON bridge.deletions TO bridge_relay, bridge_backup;
GRANT USAGE ON SEQUENCE bridge.deployment_revision TO bridge_platform;

-- No role of ours may empty the tables of an organization, but for this function, and only of one that is being
-- deleted. It runs as the owner, whom row-level security lets see those rows then and no others.
CREATE FUNCTION bridge.organization_being_removed() RETURNS uuid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT nullif(current_setting('bridge.removing', true), '')::uuid $$;

-- The policy that lets it, on each table that has none yet. Runs after every migration.
CREATE FUNCTION bridge.allow_removal() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    relation text;
BEGIN
    FOR relation IN
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'bridge'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND c.relname NOT IN ('organizations', 'deletions')
          AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'organization_id')
          AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'removal')
    LOOP
        EXECUTE format('CREATE POLICY removal ON bridge.%I TO bridge_owner'
                       ' USING (organization_id = (SELECT bridge.organization_being_removed()))'
                       ' WITH CHECK (false)', relation);
    END LOOP;
END
$$;
CREATE POLICY removal ON bridge.organizations FOR SELECT TO bridge_owner USING (status = 'deleting');

-- Delete up to `at_most` rows of a table (of a partitioned one: those of up to `at_most` messages); gives how many.
CREATE FUNCTION bridge.remove_rows(organization uuid, relation text, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind    "char";
    removed bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM bridge.organizations o WHERE o.organization_id = organization) THEN
        RAISE EXCEPTION 'organization % is not being deleted', organization USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT c.relkind INTO kind FROM pg_class c
    WHERE c.relnamespace = 'bridge'::regnamespace AND c.relname = relation AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition AND c.relname NOT IN ('alembic_version', 'organizations', 'deletions');
    IF kind IS NULL THEN
        RAISE EXCEPTION 'no rows are removed from %', relation USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('bridge.removing', organization::text, true);
    IF kind = 'p' THEN
        EXECUTE format('DELETE FROM bridge.%1$I WHERE organization_id = $1 AND message_id IN'
                       ' (SELECT message_id FROM bridge.%1$I WHERE organization_id = $1 LIMIT $2)', relation)
            USING organization, at_most;
    ELSE
        EXECUTE format('DELETE FROM bridge.%1$I WHERE organization_id = $1 AND ctid = ANY (ARRAY('
                       'SELECT ctid FROM bridge.%1$I WHERE organization_id = $1 LIMIT $2))', relation)
            USING organization, at_most;
    END IF;
    GET DIAGNOSTICS removed = ROW_COUNT;
    PERFORM set_config('bridge.removing', '', true);
    RETURN removed;
END
$$;
REVOKE ALL ON FUNCTION bridge.organization_being_removed, bridge.allow_removal, bridge.remove_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.remove_rows TO bridge_platform;

-- As before, but that a process which still has some of a deleted organization's allowance is not refused its whole
-- transaction.
CREATE OR REPLACE FUNCTION bridge.take_allowance(
    organization uuid, kind text, wanted bigint, whole boolean, since timestamptz DEFAULT NULL,
    OUT granted bigint, OUT resource text, OUT allowed bigint, OUT used bigint, OUT ends_at timestamptz)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    part record;
    rest bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM bridge.organization_limits l WHERE l.organization_id = organization) THEN
        -- It was deleted: nothing is given, and nothing given back.
        granted := 0;
        resource := kind || '_per_hour';
        allowed := 0;
        used := 0;
        ends_at := date_trunc('hour', clock_timestamp()) + interval '1 hour';
        RETURN;
    END IF;
    granted := wanted;
    -- Always the hour first, so that two who take wait for each other instead of deadlocking.
    FOR part IN
        SELECT kind || '_per_' || unit AS name, date_trunc(unit, clock_timestamp()) AS begins, ('1 ' || unit)::interval AS lasts
        FROM (VALUES (1, 'hour'), (2, 'day')) AS units (place, unit) ORDER BY place
    LOOP
        INSERT INTO bridge.quota_windows AS w (organization_id, resource, starts_at, used)
        VALUES (organization, part.name, part.begins, 0)
        ON CONFLICT ON CONSTRAINT quota_windows_pkey DO UPDATE
        SET starts_at = excluded.starts_at,
            used = CASE WHEN w.starts_at = excluded.starts_at THEN w.used ELSE 0 END
        RETURNING w.used INTO rest;
        IF wanted < 0 THEN
            IF since IS NULL OR since >= part.begins THEN
                UPDATE bridge.quota_windows w SET used = greatest(0, w.used + wanted)
                WHERE w.organization_id = organization AND w.resource = part.name;
            END IF;
            CONTINUE;
        END IF;
        SELECT l.allowed INTO allowed FROM bridge.organization_limits l
        WHERE l.organization_id = organization AND l.resource = part.name;
        IF NOT FOUND THEN
            allowed := 0;
        END IF;
        IF allowed IS NOT NULL AND (rest >= allowed OR (whole AND rest + wanted > allowed)) THEN
            granted := 0;
            resource := part.name;
            used := rest;
            ends_at := part.begins + part.lasts;
            RETURN;
        END IF;
        IF allowed IS NOT NULL AND NOT whole THEN
            granted := least(granted, greatest(1, (allowed - rest) / 8));
        END IF;
        ends_at := least(ends_at, part.begins + part.lasts);
    END LOOP;
    IF granted > 0 THEN
        UPDATE bridge.quota_windows w SET used = w.used + granted
        WHERE w.organization_id = organization AND w.resource IN (kind || '_per_hour', kind || '_per_day');
    END IF;
END
$$;
