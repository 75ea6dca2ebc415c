-- Takes room for at least `fewest` and at most `most` bytes, of what is left an eighth where that is less than `most`.
-- `granted` 0: there is no room for `fewest`. `allowed` and `used` are in MB. `measured_at` says since when room is
-- counted: a negative `most` gives back what was taken `since` then, and nothing when it was measured anew after that,
-- as what was held then is forgotten.
DROP FUNCTION bridge.take_storage;
CREATE FUNCTION bridge.take_storage(organization uuid, fewest bigint, most bigint, since timestamptz DEFAULT NULL,
    OUT granted bigint, OUT allowed bigint, OUT used bigint, OUT measured_at timestamptz)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held bigint;
    room bigint;
BEGIN
    IF most < 0 THEN
        UPDATE bridge.storage_use s SET bytes = greatest(0, s.bytes + most)
        WHERE s.organization_id = organization AND s.measured_at IS NOT DISTINCT FROM since;
        granted := most;
        RETURN;
    END IF;
    SELECT l.allowed INTO allowed FROM bridge.organization_limits l
    WHERE l.organization_id = organization AND l.resource = 'storage_mb';
    IF NOT FOUND THEN
        allowed := 0;
    END IF;
    -- Who is refused writes nothing and waits for nobody: looked at first without, then with the row held.
    SELECT s.bytes INTO held FROM bridge.storage_use s WHERE s.organization_id = organization;
    IF allowed * 1000000 - coalesce(held, 0) >= greatest(fewest, 1) OR allowed IS NULL THEN
        INSERT INTO bridge.storage_use (organization_id, bytes) VALUES (organization, 0)
        ON CONFLICT ON CONSTRAINT storage_use_pkey DO NOTHING;
        SELECT s.bytes, s.measured_at INTO held, measured_at FROM bridge.storage_use s
        WHERE s.organization_id = organization FOR NO KEY UPDATE;
    END IF;
    granted := most;
    IF allowed IS NOT NULL THEN
        room := allowed * 1000000 - coalesce(held, 0);
        IF room < greatest(fewest, 1) THEN
            granted := 0;
            used := ceil(coalesce(held, 0) / 1000000.0);
            RETURN;
        END IF;
        granted := least(most, greatest(fewest, room / 8, 1));
    END IF;
    UPDATE bridge.storage_use s SET bytes = s.bytes + granted WHERE s.organization_id = organization;
END
$$;
REVOKE ALL ON FUNCTION bridge.take_storage FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.take_storage TO bridge_app, bridge_relay;

-- What is there already may be changed, also when less is allowed than there is.
CREATE OR REPLACE FUNCTION bridge.check_account_ecosystems() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner   text;
    allowed bigint;
BEGIN
    PERFORM set_config('bridge.counting', 'on', true);
    SELECT o.account, a.max_ecosystems INTO owner, allowed
    FROM bridge.organizations o JOIN bridge.accounts a ON a.account = o.account
    WHERE o.organization_id = NEW.organization_id;
    IF allowed IS NOT NULL AND NOT EXISTS (
        SELECT FROM bridge.ecosystems e
        WHERE e.organization_id = NEW.organization_id AND e.ecosystem = NEW.ecosystem) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(owner || '/ecosystems', 4201917013));
        PERFORM bridge.refuse_over_limit('account_ecosystems', allowed, (
            SELECT count(*) FROM bridge.ecosystems e JOIN bridge.organizations o USING (organization_id)
            WHERE o.account = owner
              AND (e.organization_id, e.ecosystem) <> (NEW.organization_id, NEW.ecosystem)));
    END IF;
    PERFORM set_config('bridge.counting', '', true);
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION bridge.check_account_systems() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner   text;
    allowed bigint;
BEGIN
    PERFORM set_config('bridge.counting', 'on', true);
    SELECT o.account, a.max_systems INTO owner, allowed
    FROM bridge.organizations o JOIN bridge.accounts a ON a.account = o.account
    WHERE o.organization_id = NEW.organization_id;
    IF allowed IS NOT NULL AND NOT EXISTS (
        SELECT FROM bridge.systems s
        WHERE s.organization_id = NEW.organization_id AND s.environment = NEW.environment
          AND s.system = NEW.system) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(owner || '/systems', 4201917013));
        PERFORM bridge.refuse_over_limit('account_systems', allowed, (
            SELECT count(*) FROM bridge.systems s JOIN bridge.organizations o USING (organization_id)
            WHERE o.account = owner
              AND (s.organization_id, s.environment, s.system) <> (NEW.organization_id, NEW.environment, NEW.system)));
    END IF;
    PERFORM set_config('bridge.counting', '', true);
    RETURN NEW;
END
$$;
