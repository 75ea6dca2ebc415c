DROP TABLE bridge.replay_jobs;
