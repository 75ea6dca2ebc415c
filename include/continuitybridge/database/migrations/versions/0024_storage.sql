-- How many bytes of payloads each organization holds. Counted when messages are let in, measured anew after retention:
-- in between it is a little too high, never too low by more than what was made inside of flows.
CREATE TABLE bridge.storage_use (
    organization_id uuid PRIMARY KEY REFERENCES bridge.organizations ON DELETE CASCADE,
    bytes           bigint NOT NULL,
    measured_at     timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

ALTER TABLE bridge.storage_use ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.storage_use TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY relay ON bridge.storage_use TO bridge_relay USING (true) WITH CHECK (true);
CREATE POLICY platform ON bridge.storage_use TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.storage_use FOR SELECT TO bridge_backup USING (true);
GRANT SELECT ON bridge.storage_use TO bridge_app, bridge_relay, bridge_platform, bridge_backup;
GRANT INSERT, UPDATE ON bridge.storage_use TO bridge_app, bridge_relay;
GRANT DELETE ON bridge.storage_use TO bridge_platform;

-- Takes room for at least `fewest` and at most `most` bytes, of what is left an eighth where that is less than `most`.
-- A negative `most` gives room back. `granted` 0: there is no room for `fewest`. `allowed` and `used` are in MB.
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

-- Organizations that are here get what their tier allows.
ALTER TABLE bridge.organizations NO FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.organization_limits NO FORCE ROW LEVEL SECURITY;
INSERT INTO bridge.organization_limits (organization_id, resource, allowed)
SELECT organization_id, 'storage_mb',
       CASE tier WHEN 'free' THEN 100 WHEN 'starter' THEN 1000 WHEN 'professional' THEN 10000 END
FROM bridge.organizations;
ALTER TABLE bridge.organizations FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.organization_limits FORCE ROW LEVEL SECURITY;
