"""Does the store agree with what a sender and a destination wrote down for themselves?

The sender's ledger holds the ids of the messages that it was answered with 202; the destination's the
Idempotency-Key of each delivery (`<message id>:<node id>:<generation>`, as often as it came). Both are kept
outside the platform, so that what they prove does not rest on its own word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

import orjson

from continuitybridge.inbox import whereabouts
from continuitybridge.inbox.whereabouts import Known

_CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Books:
    """How the ledgers stand against the store and each other.

    Each message of the sender's ledger stands in exactly one of these lists: `delivered` (at least one
    delivery, its own or of a message that it called), `in_triage`, `under_way`, `skipped` (or discarded: somebody
    decided so), `undelivered` (done, and by its trace no step that delivers had it: a filter dropped it, say),
    `lost` (the store does not know it, or says done, and no delivery came). One that was gathered into another
    stands where that one does. A message in triage or under way may have been delivered in part; it is listed
    there.

    `unanswered`: delivered and known to the store, but not in the sender's ledger, which never read the answer.
    `invented`: deliveries of messages that neither the store nor the sender knows, or whose key is none.
    `rekeyed`: the keys of messages that came to one node under several generations without a replay that
    explains it. `repeated` counts deliveries beyond the first with the same key, which at-least-once allows.
    """

    accepted: int
    deliveries: int
    delivered: int
    repeated: int
    in_triage: list[str]
    under_way: list[str]
    skipped: list[str]
    undelivered: list[str]
    lost: list[str]
    unanswered: list[str]
    invented: list[str]
    rekeyed: list[str]

    @property
    def agree(self) -> bool:
        """Whether nothing was lost, invented, or delivered twice under different keys. What is under way may yet
        be lost: ask again when nothing is."""
        return not (self.lost or self.invented or self.rekeyed)


def read(lines: Iterable[str]) -> Iterator[str]:
    """The ids or keys of a ledger: one a line, or the first item of a JSON array, or `id` or `key` of a JSON
    object; empty lines, and a last one that was cut off, are passed over."""
    for line in lines:
        text = line.strip()
        if text[:1] not in "[{":
            if text:
                yield text
            continue
        with suppress(orjson.JSONDecodeError):
            entry = orjson.loads(text)
            found = entry[0] if isinstance(entry, list) and entry else entry
            if isinstance(found, dict):
                found = found.get("id") or found.get("key")
            if isinstance(found, str):
                yield found


def compare(organization_id: UUID, accepted: Iterable[str], deliveries: Iterable[str] | None) -> Books:
    """Hold the ledgers against the store, as the application role of one organization. Without `deliveries` what
    is done counts as delivered. Each chunk of messages is seen as one moment; for a final word let nothing be
    under way.

    The store is asked before `deliveries` are read: what it calls done by then was delivered before, so that what
    comes in between is taken for lost by nobody."""
    sent = list(dict.fromkeys(accepted))
    known = _look_up(organization_id, sent)
    keys: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    invented: list[str] = []
    came = 0
    for key in deliveries or ():
        came += 1
        parts = key.rsplit(":", 2)
        if len(parts) == 3 and all(parts) and parts[2].isdigit():
            keys[parts[0]][parts[1]][parts[2]] += 1
        else:
            invented.append(key)
    expected = set(sent)
    known |= _look_up(organization_id, (name for child in keys for name in _names(child) if name not in expected))
    while callers := {each.parent_id for each in known.values() if each.parent_id} - known.keys():
        found = _look_up(organization_id, callers)
        known |= dict.fromkeys(callers, whereabouts.GONE) | found

    delivered: set[str] = set()
    rekeyed: list[str] = []
    for child, nodes in keys.items():
        message_id = next((name for name in _names(child) if name in known or name in expected), None)
        if message_id is None:
            invented += [f"{child}:{node}:{n}" for node, generations in nodes.items() for n in generations]
            continue
        those = _callers(message_id, known)
        delivered.update(those)
        # Each replay may have taken a new generation, and nothing else does.
        replays = sum(known[each].replays for each in those if each in known)
        rekeyed += [
            f"{child}:{node}:{','.join(sorted(generations, key=int))}"
            for node, generations in nodes.items()
            if len(generations) > 1 + replays or max(map(int, generations)) > 1 + replays
        ]
    repeated = sum(
        times - 1 for nodes in keys.values() for generations in nodes.values() for times in generations.values()
    )
    unread = {each for each in delivered - expected if not expected.intersection(_callers(each, known))}
    return Books(
        accepted=len(sent),
        deliveries=came,
        repeated=repeated,
        unanswered=sorted(each for each in unread if each not in known or known[each].parent_id is None),
        invented=sorted(invented),
        rekeyed=sorted(rekeyed),
        **_sorted_by_end(organization_id, sent, known, delivered, compared=deliveries is not None),
    )


def _sorted_by_end(
    organization_id: UUID, sent: Sequence[str], known: dict[str, Known], delivered: set[str], *, compared: bool
) -> dict[str, Any]:
    """The lists of `Books` in which each message of the sender stands, and how many were `delivered`."""
    found: dict[str, list[str]] = {"in_triage": [], "under_way": [], "skipped": [], "undelivered": [], "lost": []}
    arrived = 0
    nowhere: list[str] = []
    for message_id in sent:
        became = known[message_id].became if message_id in known else None
        if became in _ENDS:
            found[_ENDS[became]].append(message_id)
        elif message_id in delivered or (became == "done" and not compared):
            arrived += 1
        elif became in ("skipped", "discarded"):
            found["skipped"].append(message_id)
        elif became is None:
            found["lost"].append(message_id)
        else:
            nowhere.append(message_id)
    ends = whereabouts.without_delivery(organization_id, nowhere, delivered)
    for message_id in nowhere:
        if ends[message_id] == "delivered":
            arrived += 1
        else:
            found[ends[message_id]].append(message_id)
    return {"delivered": arrived, **found}


_ENDS: Mapping[str | None, str] = {"unsettled": "under_way", "dead": "in_triage"}


def _callers(message_id: str, known: dict[str, Known]) -> list[str]:
    """The message, who called it, and so on."""
    chain = [message_id]
    while (here := known.get(chain[-1])) is not None and here.parent_id and here.parent_id not in chain:
        chain.append(here.parent_id)
    return chain


def _names(child: str) -> Iterator[str]:
    """The message that a delivery's id may be of: itself, or what it is a child of (`<parent>.<n>`)."""
    yield child
    while True:
        parent, dot, number = child.rpartition(".")
        if not (dot and parent and number.isdigit()):
            return
        child = parent
        yield child


def _look_up(organization_id: UUID, ids: Iterable[str]) -> dict[str, Known]:
    found: dict[str, Known] = {}
    wanted = iter(dict.fromkeys(ids))
    while chunk := list(islice(wanted, _CHUNK)):
        found |= whereabouts.look_up(organization_id, chunk)
    return found
