-- The audit trail: who did what, chained by hashes, per organization.

-- People in the trail. What names them is encrypted under a key of their own, so that erasing the key erases them
-- from it while every hash goes on holding. `fingerprint` finds the subject of a name.
CREATE TABLE bridge.audit_subjects (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    subject_id      uuid NOT NULL,
    fingerprint     bytea,
    sealed_key      bytea,
    created_at      timestamptz NOT NULL DEFAULT now(),
    erased_at       timestamptz,
    PRIMARY KEY (organization_id, subject_id),
    UNIQUE (organization_id, fingerprint),
    CHECK ((sealed_key IS NULL) = (erased_at IS NOT NULL)),
    CHECK ((fingerprint IS NULL) = (erased_at IS NOT NULL))
);

-- The end of each organization's chain; whoever appends holds its row until his transaction ends.
CREATE TABLE bridge.audit_chains (
    organization_id uuid PRIMARY KEY REFERENCES bridge.organizations ON DELETE CASCADE,
    seq             bigint NOT NULL DEFAULT 0,
    hash            bytea NOT NULL DEFAULT '\x'
);

-- `details` is kept as it was written: the hash is taken of its text.
CREATE TABLE bridge.audit_events (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    seq             bigint NOT NULL,
    event_id        uuid NOT NULL,
    at              timestamptz NOT NULL,
    action          text NOT NULL CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),
    target          text NOT NULL,
    environment     text,
    actor_kind      text NOT NULL CHECK (actor_kind IN ('user', 'command', 'platform')),
    subject_id      uuid,
    personal        bytea,
    details         json NOT NULL,
    previous_hash   bytea NOT NULL,
    hash            bytea NOT NULL,
    PRIMARY KEY (organization_id, seq),
    UNIQUE (organization_id, event_id),
    FOREIGN KEY (organization_id, subject_id) REFERENCES bridge.audit_subjects,
    CHECK ((subject_id IS NULL) = (personal IS NULL))
);
CREATE INDEX audit_events_subject ON bridge.audit_events (organization_id, subject_id);
CREATE INDEX audit_events_at ON bridge.audit_events (organization_id, at);

-- Each field behind its length, null as length -1: no two different events have the same bytes.
CREATE FUNCTION bridge.audit_framed(VARIADIC fields bytea[]) RETURNS bytea
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(CASE WHEN field IS NULL THEN int4send(-1) ELSE int4send(octet_length(field)) || field END,
                      '' ORDER BY place)
    FROM unnest(fields) WITH ORDINALITY AS t (field, place)
$$;

-- Nobody who writes an event chooses its place, its time or its hash. Runs as the owner, who alone may move the
-- end of a chain.
CREATE FUNCTION bridge.append_to_audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last record;
BEGIN
    INSERT INTO bridge.audit_chains (organization_id) VALUES (NEW.organization_id) ON CONFLICT DO NOTHING;
    SELECT c.seq, c.hash INTO last FROM bridge.audit_chains c
    WHERE c.organization_id = NEW.organization_id FOR UPDATE;
    NEW.seq := last.seq + 1;
    NEW.at := clock_timestamp();
    NEW.previous_hash := last.hash;
    NEW.hash := sha256(bridge.audit_framed(
        convert_to('bridge-audit-1', 'UTF8'), NEW.previous_hash, uuid_send(NEW.organization_id), int8send(NEW.seq),
        uuid_send(NEW.event_id), int8send((extract(epoch FROM NEW.at) * 1000000)::int8),
        convert_to(NEW.action, 'UTF8'), convert_to(NEW.target, 'UTF8'), convert_to(NEW.environment, 'UTF8'),
        convert_to(NEW.actor_kind, 'UTF8'), uuid_send(NEW.subject_id), NEW.personal,
        convert_to(NEW.details::text, 'UTF8')));
    UPDATE bridge.audit_chains c SET seq = NEW.seq, hash = NEW.hash WHERE c.organization_id = NEW.organization_id;
    RETURN NEW;
END
$$;
CREATE TRIGGER append BEFORE INSERT ON bridge.audit_events FOR EACH ROW EXECUTE FUNCTION bridge.append_to_audit();
REVOKE ALL ON FUNCTION bridge.audit_framed, bridge.append_to_audit FROM PUBLIC;

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['audit_subjects', 'audit_chains', 'audit_events'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
        EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_app, bridge_backup', relation);
    END LOOP;
    FOREACH relation IN ARRAY ARRAY['audit_subjects', 'audit_events'] LOOP
        EXECUTE pg_catalog.format('CREATE POLICY platform ON bridge.%I TO bridge_platform USING (true) WITH CHECK (true)', relation);
    END LOOP;
END
$$;
CREATE POLICY chain ON bridge.audit_chains TO bridge_owner USING (true) WITH CHECK (true);

-- What the chain sets is nobody's to write, and nothing is anybody's to change.
GRANT INSERT (organization_id, event_id, action, target, environment, actor_kind, subject_id, personal, details)
    ON bridge.audit_events TO bridge_app, bridge_platform;
GRANT INSERT (organization_id, subject_id, fingerprint, sealed_key) ON bridge.audit_subjects
    TO bridge_app, bridge_platform;
GRANT SELECT, UPDATE (fingerprint, sealed_key, erased_at) ON bridge.audit_subjects TO bridge_platform;
