"""Finds node types: every module below `nodes/<category>/` that defines one `_Node` subclass with a `type`.

`node_types()` imports lazily: names are known from the file names, so that a command that needs one node
does not import lxml and jq for all the others.
"""
