DROP TABLE bridge.api_keys;
