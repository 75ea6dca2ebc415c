"""The message store and its guarantees. Nothing accepted is lost; nothing is settled twice.

Modules by verb: `accept` (and `accept.aio` for group commit), `batches`, `claim`, `settle`, `replay`, `sweep`,
`status`, `triage`, `reconcile`, `retention`. Each says in its docstrings what it guarantees and where that stops.

The life of a message: accepted → claimed → done, skipped or dead. A claim holds a lease and an epoch; the epoch
grows with every claim, and only its newest holder can settle. What a stage leaves for another stage, or for
another try, is a hand-over: a unit of work with a lease of its own. A message is settled when its last hand-over
is.
"""
