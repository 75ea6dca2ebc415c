"""The quick tools of the field, for figures beside ours: Node-RED and n8n from npm, with the same small flow
(webhook → map → HTTP POST → reply). Each is installed below `.bench/peers` once; where it cannot be, `Missing`
says why and its figures are left out, loudly."""
