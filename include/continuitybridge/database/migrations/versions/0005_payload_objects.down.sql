REVOKE INSERT, UPDATE ON bridge.replies FROM bridge_app;
DROP TABLE bridge.payload_objects;
