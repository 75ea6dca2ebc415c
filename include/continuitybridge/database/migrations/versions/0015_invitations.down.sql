DROP TABLE bridge.invitations;
DROP FUNCTION bridge.check_invitation_quota;
