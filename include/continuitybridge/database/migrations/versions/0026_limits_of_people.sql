-- Limits of accounts and of consultants. They go over several organizations, which no role that works in one of them
-- sees: these functions run as the owner, whom row-level security lets count while they do and not otherwise.
ALTER TABLE bridge.accounts
    ADD COLUMN max_ecosystems integer CHECK (max_ecosystems >= 0),
    ADD COLUMN max_systems    integer CHECK (max_systems >= 0);
GRANT UPDATE (max_ecosystems, max_systems) ON bridge.accounts TO bridge_platform;
-- How many organizations may be assigned to the person as a consultant; null: any number.
ALTER TABLE bridge.people ADD COLUMN max_organizations integer CHECK (max_organizations >= 0);

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['accounts', 'organizations', 'ecosystems', 'systems', 'memberships', 'people'] LOOP
        EXECUTE pg_catalog.format(
            'CREATE POLICY counting ON bridge.%I FOR SELECT TO bridge_owner'
            ' USING (pg_catalog.current_setting(''bridge.counting'', true) = ''on'')', relation);
    END LOOP;
END
$$;

-- Those who come at once wait for each other.
CREATE FUNCTION bridge.check_account_ecosystems() RETURNS trigger
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
CREATE TRIGGER account_quota BEFORE INSERT ON bridge.ecosystems
    FOR EACH ROW EXECUTE FUNCTION bridge.check_account_ecosystems();

CREATE FUNCTION bridge.check_account_systems() RETURNS trigger
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
CREATE TRIGGER account_quota BEFORE INSERT ON bridge.systems
    FOR EACH ROW EXECUTE FUNCTION bridge.check_account_systems();

CREATE FUNCTION bridge.check_assigned_organizations() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint;
BEGIN
    PERFORM set_config('bridge.counting', 'on', true);
    SELECT p.max_organizations INTO allowed FROM bridge.people p WHERE p.user_name = NEW.user_name;
    IF allowed IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(NEW.user_name || '/assigned', 4201917013));
        PERFORM bridge.refuse_over_limit('assigned_organizations', allowed, (
            SELECT count(*) FROM bridge.memberships m
            WHERE m.user_name = NEW.user_name AND m.role = 'consultant'
              AND m.organization_id <> NEW.organization_id));
    END IF;
    PERFORM set_config('bridge.counting', '', true);
    RETURN NEW;
END
$$;
CREATE TRIGGER consultant_quota BEFORE INSERT OR UPDATE OF role ON bridge.memberships
    FOR EACH ROW WHEN (NEW.role = 'consultant') EXECUTE FUNCTION bridge.check_assigned_organizations();
REVOKE ALL ON FUNCTION bridge.check_account_ecosystems, bridge.check_account_systems,
    bridge.check_assigned_organizations FROM PUBLIC;

-- Who decided, replayed, discarded or skipped stands in a message's trace by name. This takes a person's name out of
-- every trace of an organization; gives in how many rows it stood. Runs as the owner, as no role changes what is settled.
DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['messages', 'settled_messages', 'hand_overs'] LOOP
        EXECUTE pg_catalog.format(
            'CREATE POLICY erasing ON bridge.%I TO bridge_owner'
            ' USING (organization_id = nullif(pg_catalog.current_setting(''bridge.erasing'', true), '''')::uuid)'
            ' WITH CHECK (organization_id = nullif(pg_catalog.current_setting(''bridge.erasing'', true), '''')::uuid)',
            relation);
    END LOOP;
END
$$;
CREATE FUNCTION bridge.names_person(entry jsonb, person text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(bool_or(value = person OR starts_with(value, person || ' (job ')), false)
    FROM (VALUES (entry ->> 'by'), (entry ->> 'replayed_by'), (entry ->> 'discarded_by'), (entry ->> 'skipped_by'))
        AS named (value)
$$;
CREATE FUNCTION bridge.without_person(trace jsonb, person text) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_agg(CASE WHEN bridge.names_person(entry, person) THEN (
        SELECT jsonb_object_agg(key, CASE WHEN key IN ('by', 'replayed_by', 'discarded_by', 'skipped_by')
                                          THEN to_jsonb('erased'::text) ELSE value END)
        FROM jsonb_each(entry)) ELSE entry END ORDER BY place)
    FROM jsonb_array_elements(trace) WITH ORDINALITY AS entries (entry, place)
$$;
CREATE FUNCTION bridge.erase_from_traces(organization uuid, person text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    erased bigint := 0;
    more   bigint;
BEGIN
    PERFORM set_config('bridge.erasing', organization::text, true);
    -- As everybody locks: the message first.
    UPDATE bridge.messages SET trace = bridge.without_person(trace, person)
    WHERE organization_id = organization AND EXISTS (
        SELECT FROM jsonb_array_elements(trace) AS e (entry) WHERE bridge.names_person(entry, person));
    GET DIAGNOSTICS more = ROW_COUNT;
    erased := erased + more;
    UPDATE bridge.settled_messages SET trace = bridge.without_person(trace, person)
    WHERE organization_id = organization AND EXISTS (
        SELECT FROM jsonb_array_elements(trace) AS e (entry) WHERE bridge.names_person(entry, person));
    GET DIAGNOSTICS more = ROW_COUNT;
    erased := erased + more;
    UPDATE bridge.hand_overs SET resume = resume || '{"by": "erased"}'
    WHERE organization_id = organization AND bridge.names_person(resume, person);
    PERFORM set_config('bridge.erasing', '', true);
    RETURN erased;
END
$$;
REVOKE ALL ON FUNCTION bridge.names_person, bridge.without_person, bridge.erase_from_traces FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bridge.erase_from_traces TO bridge_platform;

-- An object may have been on its way into the payload store while its organization was deleted: what is left there is
-- removed when nothing can be on its way any more.
ALTER TABLE bridge.deletions ADD COLUMN swept_at timestamptz;
GRANT UPDATE (swept_at) ON bridge.deletions TO bridge_platform;
