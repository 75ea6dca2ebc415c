-- Quotas: what each organization may have and use. `organizations/tiers.py` holds the numbers of the tiers; here is
-- what holds for each organization, and what refuses.
ALTER TABLE bridge.organizations
    ADD COLUMN tier text NOT NULL DEFAULT 'professional'
        CHECK (tier IN ('free', 'starter', 'professional', 'enterprise'));

-- `allowed` null: unlimited. A resource without a row is refused. `agreed`: not the tier's, but agreed upon for
-- this organization; a change of tier leaves it.
CREATE TABLE bridge.organization_limits (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    resource        text NOT NULL,
    allowed         bigint CHECK (allowed >= 0),
    agreed          boolean NOT NULL DEFAULT false,
    PRIMARY KEY (organization_id, resource)
);

-- What was used in the current hour and day (UTC).
CREATE TABLE bridge.quota_windows (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    resource        text NOT NULL,
    starts_at       timestamptz NOT NULL,
    used            bigint NOT NULL,
    PRIMARY KEY (organization_id, resource)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['organization_limits', 'quota_windows'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
        EXECUTE pg_catalog.format('CREATE POLICY relay ON bridge.%I TO bridge_relay USING (true) WITH CHECK (true)', relation);
        EXECUTE pg_catalog.format('CREATE POLICY platform ON bridge.%I TO bridge_platform USING (true) WITH CHECK (true)', relation);
        EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_app, bridge_relay, bridge_platform, bridge_backup', relation);
    END LOOP;
END
$$;
GRANT INSERT, UPDATE, DELETE ON bridge.organization_limits TO bridge_platform;
-- The application role too counts what it accepts.
GRANT INSERT, UPDATE ON bridge.quota_windows TO bridge_app, bridge_relay;
GRANT DELETE ON bridge.quota_windows TO bridge_platform;

-- The limit of a resource; null: unlimited. Whoever asks for it waits for whoever asked before him in the same
-- organization until that transaction ends, so that two do not both take the last place.
CREATE FUNCTION bridge.limit_of(organization uuid, wanted text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found bigint;
    is_there boolean;
BEGIN
    SELECT l.allowed, true INTO found, is_there FROM bridge.organization_limits l
    WHERE l.organization_id = organization AND l.resource = wanted;
    IF is_there IS NULL THEN
        -- The owner migrates and restores; what is another organization's, row-level security refuses.
        RETURN CASE WHEN current_user = 'bridge_owner'
                      OR (current_user = 'bridge_app' AND organization IS DISTINCT FROM bridge.current_organization())
                    THEN NULL ELSE 0 END;
    END IF;
    IF found IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(organization::text || '/' || wanted, 4201917013));
    END IF;
    RETURN found;
END
$$;

CREATE FUNCTION bridge.refuse_over_limit(wanted text, allowed bigint, used bigint) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF allowed IS NOT NULL AND used >= allowed THEN
        RAISE EXCEPTION '%: % of % are used', wanted, used, allowed
            USING ERRCODE = 'BQ001',
                  DETAIL = json_build_object('resource', wanted, 'allowed', allowed, 'used', used)::text;
    END IF;
END
$$;

-- One trigger function per table: what is there already is no new use, whatever statement repeats it.
CREATE FUNCTION bridge.check_flow_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint;
BEGIN
    IF NEW.status = 'removed' OR EXISTS (
        SELECT FROM bridge.deployments d
        WHERE d.organization_id = NEW.organization_id AND d.flow = NEW.flow AND d.status <> 'removed') THEN
        RETURN NEW;
    END IF;
    allowed := bridge.limit_of(NEW.organization_id, 'flows');
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('flows', allowed, (
            SELECT count(DISTINCT d.flow) FROM bridge.deployments d
            WHERE d.organization_id = NEW.organization_id AND d.status <> 'removed' AND d.flow <> NEW.flow));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT OR UPDATE OF status ON bridge.deployments
    FOR EACH ROW EXECUTE FUNCTION bridge.check_flow_quota();

CREATE FUNCTION bridge.check_version_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint := bridge.limit_of(NEW.organization_id, 'versions_per_flow');
BEGIN
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('versions_per_flow', allowed, (
            SELECT count(*) FROM bridge.flow_versions v
            WHERE v.organization_id = NEW.organization_id AND v.flow = NEW.flow AND v.version <> NEW.version));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.flow_versions
    FOR EACH ROW EXECUTE FUNCTION bridge.check_version_quota();

CREATE FUNCTION bridge.check_endpoint_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint := bridge.limit_of(NEW.organization_id, 'endpoints');
BEGIN
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('endpoints', allowed, (
            SELECT count(*) FROM bridge.endpoints e
            WHERE e.organization_id = NEW.organization_id
              AND (e.environment, e.slug) <> (NEW.environment, NEW.slug)));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.endpoints
    FOR EACH ROW EXECUTE FUNCTION bridge.check_endpoint_quota();

CREATE FUNCTION bridge.check_connection_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint := bridge.limit_of(NEW.organization_id, 'connections');
BEGIN
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('connections', allowed, (
            SELECT count(*) FROM bridge.connections c
            WHERE c.organization_id = NEW.organization_id
              AND (c.environment, c.name) <> (NEW.environment, NEW.name)));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.connections
    FOR EACH ROW EXECUTE FUNCTION bridge.check_connection_quota();

CREATE FUNCTION bridge.check_member_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint := bridge.limit_of(NEW.organization_id, 'members');
BEGIN
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('members', allowed, (
            SELECT count(*) FROM bridge.memberships m
            WHERE m.organization_id = NEW.organization_id AND m.user_name <> NEW.user_name));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.memberships
    FOR EACH ROW EXECUTE FUNCTION bridge.check_member_quota();

CREATE FUNCTION bridge.check_environment_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint := bridge.limit_of(NEW.organization_id, 'environments');
BEGIN
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('environments', allowed, (
            SELECT count(*) FROM bridge.environments e
            WHERE e.organization_id = NEW.organization_id AND e.environment <> NEW.environment));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.environments
    FOR EACH ROW EXECUTE FUNCTION bridge.check_environment_quota();

-- Takes up to `wanted` of what is left of this hour and this day; all of it or nothing where `whole`. A negative
-- number gives back what was taken since `since`. `granted` 0: nothing is left until `ends_at`.
CREATE FUNCTION bridge.take_allowance(
    organization uuid, kind text, wanted bigint, whole boolean, since timestamptz DEFAULT NULL,
    OUT granted bigint, OUT resource text, OUT allowed bigint, OUT used bigint, OUT ends_at timestamptz)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    part record;
    rest bigint;
BEGIN
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

REVOKE ALL ON FUNCTION bridge.limit_of, bridge.refuse_over_limit, bridge.take_allowance FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.limit_of, bridge.refuse_over_limit TO bridge_app, bridge_relay, bridge_platform;
GRANT EXECUTE ON FUNCTION bridge.take_allowance TO bridge_app, bridge_relay;
