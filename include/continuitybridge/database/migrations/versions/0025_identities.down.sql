DROP TABLE bridge.identities;
