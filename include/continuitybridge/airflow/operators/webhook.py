"""Waiting for a message at a webhook."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from continuitybridge.airflow.operators import _task
from continuitybridge.errors import BridgeError, NotFound, Unavailable

if TYPE_CHECKING:
    from airflow.sdk import Context

    from continuitybridge.inbox.arrivals import Arrival


class WebhookSensor(BaseSensorOperator):
    """Waits until a message has been accepted at a webhook of a deployed flow.

    :param organization: the organization's slug (templated).
    :param environment: its environment (templated).
    :param endpoint: the webhook's slug (templated).
    :param keys: search keys that the message must bear (templated), of those that the flow declares under `index`:
        `{"po_number": "{{ params.po_number }}"}` waits for that order.
    :param after: only messages accepted from this time on, ISO 8601 with time zone (templated). By default the
        time the run was due (`run_after`).
    :param deferrable: wait in the triggerer, without holding a worker's slot.

    The message goes through its flow as every other; the sensor looks and takes nothing away. The same message may
    satisfy several runs. The result is `{"message_id", "flow", "version", "state", "keys", "accepted_at"}`, of the
    earliest such message; its payload stays with the organization, whose key a DAG in Python does not have.

    It reads as the application's role, within the one organization. An unknown organization or endpoint fails the
    task; `timeout`, `poke_interval` and `soft_fail` mean what they mean for every sensor.
    """

    template_fields: Sequence[str] = ("organization", "environment", "endpoint", "keys", "after")
    template_fields_renderers: ClassVar[dict[str, str]] = {"keys": "json"}
    ui_color = "#e8f1fb"

    def __init__(
        self,
        *,
        organization: str,
        environment: str,
        endpoint: str,
        keys: Mapping[str, Any] | None = None,
        after: str | datetime | None = None,
        deferrable: bool = True,
        poke_interval: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.organization = organization
        self.environment = environment
        self.endpoint = endpoint
        self.keys = dict(keys or {})
        self.after = after
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Look once; then wait in the triggerer or here."""
        if not self.deferrable:
            return super().execute(context)
        found = self.poke(context)
        if isinstance(found, PokeReturnValue):
            return found.xcom_value
        return self.defer(
            trigger=WebhookTrigger(
                organization_id=str(self._organization_id()),
                environment=self.environment,
                endpoint=self.endpoint,
                keys=self.keys,
                since=self._since(context).isoformat(),
                poll_interval_s=float(self.poke_interval),
            ),
            method_name=self.execute_complete.__name__,
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """What the trigger found."""
        if "failed" in event:
            raise AirflowFailException(event["failed"])
        return dict(event["arrival"])

    def poke(self, context: Context) -> bool | PokeReturnValue:
        from continuitybridge.inbox.arrivals import first_arrival

        try:
            arrival = first_arrival(
                self._organization_id(),
                self.environment,
                self.endpoint,
                since=self._since(context),
                keys=self.keys,
            )
        except BridgeError as error:
            raise _task.task_error(error) from error
        return PokeReturnValue(is_done=True, xcom_value=_told(arrival)) if arrival else False

    def _organization_id(self) -> UUID:
        from continuitybridge import organizations

        try:
            return organizations.by_slug(self.organization).organization_id
        except BridgeError as error:
            raise _task.task_error(error) from error

    def _since(self, context: Context) -> datetime:
        if self.after is None:
            return context["dag_run"].run_after
        since = self.after if isinstance(self.after, datetime) else _time(self.after)
        if since.tzinfo is None:
            raise AirflowFailException(f"after: {self.after!r} has no time zone")
        return since


class WebhookTrigger(BaseTrigger):
    """The waiting part of `WebhookSensor`, in the triggerer. Survives restarts of the database."""

    def __init__(
        self,
        organization_id: str,
        environment: str,
        endpoint: str,
        keys: dict[str, Any],
        since: str,
        poll_interval_s: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.organization_id = organization_id
        self.environment = environment
        self.endpoint = endpoint
        self.keys = keys
        self.since = since
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "organization_id": self.organization_id,
                "environment": self.environment,
                "endpoint": self.endpoint,
                "keys": self.keys,
                "since": self.since,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from continuitybridge.inbox.arrivals import first_arrival_async

        since = datetime.fromisoformat(self.since)
        while True:
            try:
                arrival = await first_arrival_async(
                    UUID(self.organization_id), self.environment, self.endpoint, since=since, keys=self.keys
                )
            except Unavailable as error:
                self.log.warning("the inbox cannot be read now: %s", error.detail)
            except NotFound as error:
                yield TriggerEvent({"failed": error.detail})  # type: ignore[no-untyped-call]
                return
            else:
                if arrival is not None:
                    yield TriggerEvent({"arrival": _told(arrival)})  # type: ignore[no-untyped-call]
                    return
            await asyncio.sleep(self.poll_interval_s)


def _told(arrival: Arrival) -> dict[str, Any]:
    return {**asdict(arrival), "accepted_at": arrival.accepted_at.isoformat()}


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise AirflowFailException(f"after: {text!r} is not a time in ISO 8601") from None
