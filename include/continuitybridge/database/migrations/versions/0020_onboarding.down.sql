DROP TABLE bridge.visits;
REVOKE INSERT, UPDATE (revoked_at, revoked_by) ON bridge.invitations FROM bridge_platform;
