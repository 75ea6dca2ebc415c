DROP FUNCTION bridge.take_storage;
CREATE FUNCTION bridge.take_storage(organization uuid, fewest bigint, most bigint,
    OUT granted bigint, OUT allowed bigint, OUT used bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held bigint;
    room bigint;
BEGIN
    INSERT INTO bridge.storage_use AS s (organization_id, bytes) VALUES (organization, 0)
    ON CONFLICT ON CONSTRAINT storage_use_pkey DO UPDATE SET bytes = greatest(0, s.bytes + least(most, 0))
    RETURNING s.bytes INTO held;
    granted := most;
    IF most < 0 THEN
        RETURN;
    END IF;
    SELECT l.allowed INTO allowed FROM bridge.organization_limits l
    WHERE l.organization_id = organization AND l.resource = 'storage_mb';
    IF NOT FOUND THEN
        allowed := 0;
    END IF;
    IF allowed IS NOT NULL THEN
        room := allowed * 1000000 - held;
        IF room < greatest(fewest, 1) THEN
            granted := 0;
            used := ceil(held / 1000000.0);
            RETURN;
        END IF;
        granted := least(most, greatest(fewest, room / 8, 1));
    END IF;
    UPDATE bridge.storage_use s SET bytes = s.bytes + granted WHERE s.organization_id = organization;
END
$$;
REVOKE ALL ON FUNCTION bridge.take_storage FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.take_storage TO bridge_app, bridge_relay;

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
    IF allowed IS NOT NULL THEN
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
    IF allowed IS NOT NULL THEN
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
