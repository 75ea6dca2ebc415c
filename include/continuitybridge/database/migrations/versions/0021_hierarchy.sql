-- Where an organization stands and what it consists of: account -> organization -> ecosystem -> environment -> system.

-- Organizations of one customer or consultancy. No table of an organization's: the platform's alone.
CREATE TABLE bridge.accounts (
    account           text PRIMARY KEY CHECK (account ~ '^[a-z][a-z0-9-]{0,39}$'),
    name              text NOT NULL CHECK (name <> ''),
    max_organizations integer CHECK (max_organizations >= 0),
    created_at        timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE bridge.accounts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY platform ON bridge.accounts TO bridge_platform USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.accounts FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE (name, max_organizations), DELETE ON bridge.accounts TO bridge_platform;
GRANT SELECT ON bridge.accounts TO bridge_backup;

ALTER TABLE bridge.organizations ADD COLUMN account text REFERENCES bridge.accounts;
CREATE INDEX organizations_account ON bridge.organizations (account) WHERE account IS NOT NULL;

CREATE FUNCTION bridge.check_account_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint;
BEGIN
    -- Two that come at once wait for each other.
    SELECT a.max_organizations INTO allowed FROM bridge.accounts a WHERE a.account = NEW.account FOR UPDATE;
    PERFORM bridge.refuse_over_limit('organizations', allowed, (
        SELECT count(*) FROM bridge.organizations o
        WHERE o.account = NEW.account AND o.organization_id <> NEW.organization_id));
    RETURN NEW;
END
$$;
CREATE TRIGGER account_quota BEFORE INSERT OR UPDATE OF account ON bridge.organizations
    FOR EACH ROW WHEN (NEW.account IS NOT NULL) EXECUTE FUNCTION bridge.check_account_quota();

CREATE TABLE bridge.ecosystems (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    ecosystem       text NOT NULL CHECK (ecosystem ~ '^[a-z][a-z0-9_-]{0,63}$'),
    kind            text NOT NULL
                    CHECK (kind IN ('erp', 'marketplace', 'wms', 'tms', '3pl', 'last_mile', 'custom')),
    name            text NOT NULL CHECK (name <> ''),
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, ecosystem)
);

-- One installation of a system in one environment.
CREATE TABLE bridge.systems (
    organization_id uuid NOT NULL,
    environment     text NOT NULL,
    system          text NOT NULL CHECK (system ~ '^[a-z][a-z0-9_-]{0,63}$'),
    ecosystem       text NOT NULL,
    name            text NOT NULL CHECK (name <> ''),
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, environment, system),
    FOREIGN KEY (organization_id, environment) REFERENCES bridge.environments ON DELETE CASCADE,
    FOREIGN KEY (organization_id, ecosystem) REFERENCES bridge.ecosystems
);
CREATE INDEX systems_ecosystem ON bridge.systems (organization_id, ecosystem);

-- Which system a connection leads to, where somebody said so.
ALTER TABLE bridge.connections ADD COLUMN system text;
ALTER TABLE bridge.connections ADD FOREIGN KEY (organization_id, environment, system) REFERENCES bridge.systems;
CREATE INDEX connections_system ON bridge.connections (organization_id, environment, system) WHERE system IS NOT NULL;

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['ecosystems', 'systems'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE bridge.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', relation);
        EXECUTE pg_catalog.format(
            'CREATE POLICY app ON bridge.%I TO bridge_app'
            ' USING (organization_id = (SELECT bridge.current_organization()))'
            ' WITH CHECK (organization_id = (SELECT bridge.current_organization()))', relation);
        EXECUTE pg_catalog.format('CREATE POLICY backup ON bridge.%I FOR SELECT TO bridge_backup USING (true)', relation);
        EXECUTE pg_catalog.format('GRANT SELECT ON bridge.%I TO bridge_app, bridge_backup', relation);
        EXECUTE pg_catalog.format('GRANT INSERT, DELETE ON bridge.%I TO bridge_app', relation);
    END LOOP;
END
$$;
GRANT UPDATE (kind, name) ON bridge.ecosystems TO bridge_app;
GRANT UPDATE (ecosystem, name) ON bridge.systems TO bridge_app;

CREATE FUNCTION bridge.check_system_quota() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed bigint;
BEGIN
    IF EXISTS (SELECT FROM bridge.systems s WHERE s.organization_id = NEW.organization_id
               AND s.environment = NEW.environment AND s.system = NEW.system) THEN
        RETURN NEW;
    END IF;
    allowed := bridge.limit_of(NEW.organization_id, 'system_instances');
    IF allowed IS NOT NULL THEN
        PERFORM bridge.refuse_over_limit('system_instances', allowed, (
            SELECT count(*) FROM bridge.systems s WHERE s.organization_id = NEW.organization_id));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER quota BEFORE INSERT ON bridge.systems
    FOR EACH ROW EXECUTE FUNCTION bridge.check_system_quota();

-- Organizations that are here get what their tier allows.
ALTER TABLE bridge.organizations NO FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.organization_limits NO FORCE ROW LEVEL SECURITY;
INSERT INTO bridge.organization_limits (organization_id, resource, allowed)
SELECT organization_id, 'system_instances',
       CASE tier WHEN 'free' THEN 1 WHEN 'starter' THEN 2 WHEN 'professional' THEN 10 END
FROM bridge.organizations;
ALTER TABLE bridge.organizations FORCE ROW LEVEL SECURITY;
ALTER TABLE bridge.organization_limits FORCE ROW LEVEL SECURITY;
