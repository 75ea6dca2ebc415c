DROP TABLE bridge.sign_in_tokens, bridge.recovery_codes, bridge.people;
