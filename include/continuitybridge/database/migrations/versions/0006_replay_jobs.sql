-- Replays of many messages: each a job that goes on where it was, whatever is killed. `cursor` says behind which
-- message it is; it is written in the transaction that replays.
CREATE TABLE bridge.replay_jobs (
    organization_id uuid NOT NULL REFERENCES bridge.organizations ON DELETE CASCADE,
    job_id          uuid NOT NULL,
    query           jsonb NOT NULL,
    start           text NOT NULL CHECK (start IN ('beginning', 'failure')),
    version         text NOT NULL,
    rate_per_s      double precision NOT NULL CHECK (rate_per_s > 0),
    status          text NOT NULL DEFAULT 'queued'
                    CHECK (status IN ('queued', 'running', 'done', 'cancelled', 'failed')),
    matched         integer NOT NULL,
    cursor          jsonb NOT NULL DEFAULT '{}',
    replayed        integer NOT NULL DEFAULT 0,
    refused         integer NOT NULL DEFAULT 0,
    refusals        jsonb NOT NULL DEFAULT '[]',
    error           text,
    next_at         timestamptz NOT NULL DEFAULT now(),
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    started_at      timestamptz,
    ended_at        timestamptz,
    ended_by        text,
    PRIMARY KEY (organization_id, job_id),
    CHECK ((status IN ('queued', 'running')) = (ended_at IS NULL))
);
CREATE INDEX replay_jobs_due ON bridge.replay_jobs (next_at) WHERE status IN ('queued', 'running');
CREATE INDEX replay_jobs_ended ON bridge.replay_jobs (ended_at) WHERE ended_at IS NOT NULL;

ALTER TABLE bridge.replay_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY app ON bridge.replay_jobs TO bridge_app
    USING (organization_id = (SELECT bridge.current_organization()))
    WITH CHECK (organization_id = (SELECT bridge.current_organization()));
CREATE POLICY relay ON bridge.replay_jobs TO bridge_relay USING (true) WITH CHECK (true);
CREATE POLICY backup ON bridge.replay_jobs FOR SELECT TO bridge_backup USING (true);
GRANT SELECT, INSERT, UPDATE ON bridge.replay_jobs TO bridge_app;
GRANT SELECT, DELETE ON bridge.replay_jobs TO bridge_relay;
GRANT SELECT ON bridge.replay_jobs TO bridge_backup;
