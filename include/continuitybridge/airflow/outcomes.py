"""What became of messages, told to Airflow: an asset event per flow and interval, with counts.

A flow's asset is `bridge://{organization}/{environment}/{flow}`. Its events say how many messages ended since the
one before, whichever mode they ran in: `{"done": 12, "skipped": 0, "dead": 1, "since": …, "until": …}`. A DAG may
be scheduled on them. They are a hint and carry no message: Airflow puts several into one run, or starts it late.

Each outcome is counted in one event. What was told stands in Airflow's own tables, in the events: an event and the
memory of it are one commit. Any number of dispatchers may run: one of them tells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from airflow.assets.manager import AssetManager
from airflow.models.asset import AssetModel
from airflow.serialization.definitions.assets import SerializedAsset
from airflow.utils.session import create_session
from sqlalchemy import text
from sqlalchemy.orm import Session

from continuitybridge import database
from continuitybridge.airflow.source import asset_uri
from continuitybridge.inbox import outcomes
from continuitybridge.inbox.batches import FlowKey

KEPT = timedelta(days=7)
"""How long Airflow keeps these events. Outcomes that nobody told for so long are not told any more."""

_LOCK = 4_201_917_019
_CHUNK = 50

_FLOWS = (
    "SELECT d.organization_id, d.environment, d.flow, o.slug, d.deployed_at"
    " FROM bridge.deployments d JOIN bridge.organizations o USING (organization_id)"
)
_TOLD = text(
    "SELECT a.uri, last.until FROM asset a CROSS JOIN LATERAL ("
    " SELECT e.extra ->> 'until' AS until FROM asset_event e WHERE e.asset_id = a.id"
    " AND e.extra ->> 'until' IS NOT NULL ORDER BY e.timestamp DESC, e.id DESC LIMIT 1) AS last"
    " WHERE a.uri LIKE 'bridge://%'"
)
_FORGET = text(
    "DELETE FROM asset_event WHERE id IN (SELECT e.id FROM asset_event e JOIN asset a ON a.id = e.asset_id"
    " WHERE a.uri LIKE 'bridge://%' AND e.timestamp < :before LIMIT 10000)"
)

_log = logging.getLogger("continuitybridge.outcomes")


class OutcomeTeller:
    """Tells at each call of `tell`; call it once per interval."""

    def __init__(self) -> None:
        # Up to here every flow was looked at by this process; what is older needs no second look.
        self._seen = datetime(1970, 1, 1, tzinfo=UTC)

    def tell(self) -> int:
        """Make the events that are due; returns how many. Nothing when another dispatcher is at it. Raises
        `Unavailable` and what Airflow's database raises: what was not told is told at a later call."""
        with database.relay() as connection:
            [(mine,)] = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
            if not mine:
                return 0
            flows = connection.execute(_FLOWS).fetchall()
            until = outcomes.counted_until()
            told = _told()
            uris = {(row[0], row[1], row[2]): asset_uri(row[3], row[1], row[2]) for row in flows}
            oldest = until - KEPT
            since = {
                key: max(told.get(uris[key]) or max(row[4], oldest), self._seen)
                for row in flows
                if (key := (row[0], row[1], row[2]))
            }
            since = {key: at for key, at in since.items() if at < until}
            found = outcomes.count(since, until)
            for chunk in _chunks(list(found)):
                with create_session() as session:
                    for key in chunk:
                        _emit(session, uris[key], found[key], since[key], until)
            self._seen = until
        return len(found)

    def forget(self) -> None:
        """Remove events that are older than `KEPT`."""
        while True:
            with create_session() as session:
                removed = session.execute(_FORGET, {"before": datetime.now(UTC) - KEPT}).rowcount  # type: ignore[attr-defined]
            if removed < 10_000:
                return


def _told() -> dict[str, datetime]:
    """Until when each flow's outcomes stand in events, by asset."""
    with create_session() as session:
        return {uri: datetime.fromisoformat(until) for uri, until in session.execute(_TOLD)}


def _emit(session: Session, uri: str, counts: outcomes.Outcomes, since: datetime, until: datetime) -> None:
    asset = session.query(AssetModel).filter_by(name=uri, uri=uri).one_or_none()
    if asset is None:
        # Its DAG is not parsed yet; Airflow takes this one for it.
        [asset] = AssetManager.create_assets(
            [SerializedAsset(name=uri, uri=uri, group="asset", extra={}, watchers=[])], session=session
        )
        session.flush()
    AssetManager.register_asset_change(
        asset=asset,
        extra={
            "done": counts.done,
            "skipped": counts.skipped,
            "dead": counts.dead,
            "since": since.isoformat(),
            "until": until.isoformat(),
        },
        session=session,
    )


def _chunks(keys: list[FlowKey]) -> Iterable[list[FlowKey]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
