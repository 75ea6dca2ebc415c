"""The small languages that configurations are written in, one module each: jq programs, conditions (jq with a
fast path), Jinja templates, JSON paths. Each is compiled once, when the node is built, and refuses there."""
