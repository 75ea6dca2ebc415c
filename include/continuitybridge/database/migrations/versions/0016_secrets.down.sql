DROP TABLE bridge.secret_versions;
DROP TABLE bridge.secrets;
