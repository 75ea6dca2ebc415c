DROP TABLE bridge.token_connects;
DROP TABLE bridge.tokens;
