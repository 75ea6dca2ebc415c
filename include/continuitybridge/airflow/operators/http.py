"""Delivery by HTTP, with Airflow's connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.sdk import BaseOperator

from continuitybridge.airflow.operators import _task
from continuitybridge.engine.message import Message
from continuitybridge.errors import Verdict

if TYPE_CHECKING:
    from airflow.providers.http.hooks.http import HttpHook
    from airflow.sdk import Context
    from requests import Response

_METHODS = ("POST", "PUT", "PATCH", "DELETE")
_EXCERPT_CHARACTERS = 500


class HttpDeliverOperator(BaseOperator):
    """Delivers the input to an HTTP destination: at least once, each message under one `Idempotency-Key`.

    :param input: what to send (templated): data as JSON, text as it is (`application/xml` with an XML
        declaration).
    :param http_conn_id: Airflow connection of type HTTP: host, credentials, headers and TLS options.
    :param endpoint: path behind the connection's address (templated).
    :param method: `POST`, `PUT`, `PATCH` or `DELETE`.
    :param headers: further headers (templated); they win over the connection's.
    :param idempotency_key: the key of the message (templated); by default `<dag id>/<run id>:<task id>:1`, which
        is the same on every try and when the task is cleared. With `each`, `.<n>` names the element.
    :param each: the input is a list, and each element is delivered by itself. One that is refused does not keep
        the others from being delivered.
    :param follow_redirects: follow redirects. Off, since following turns a POST into a GET.
    :param timeout_s: longest time for connecting, and between two bytes of the answer, in seconds.

    A status of 2xx is delivered. 408, 425, 429, 5xx, broken connections and time-outs may pass: the task fails
    with `AirflowException`, and its `retries` apply. Every other status stands: `AirflowFailException`. A try
    whose answer was lost is repeated with the same key; destinations that know the header take it once.

    The result is `{"status": 201, "body": …}` (JSON data or text), with `each` the list of them.
    """

    template_fields: Sequence[str] = ("input", "http_conn_id", "endpoint", "headers", "idempotency_key")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json", "headers": "json"}
    ui_color = "#fdf3e7"

    def __init__(
        self,
        *,
        input: Any,
        http_conn_id: str = "http_default",
        endpoint: str = "",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        each: bool = False,
        follow_redirects: bool = False,
        timeout_s: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if method not in _METHODS:
            raise ValueError(f"method: {method!r} is not one of {', '.join(_METHODS)}")
        self.input = input
        self.http_conn_id = http_conn_id
        self.endpoint = endpoint
        self.method = method
        self.headers = dict(headers or {})
        self.idempotency_key = idempotency_key
        self.each = each
        self.follow_redirects = follow_redirects
        self.timeout_s = timeout_s

    def execute(self, context: Context) -> dict[str, Any] | list[dict[str, Any]]:
        """Deliver; returns what the destination answered."""
        from airflow.providers.http.hooks.http import HttpHook

        hook = HttpHook(method=self.method, http_conn_id=self.http_conn_id)
        batch = _task.messages(context, self.input, {}, each=self.each)
        answers: list[dict[str, Any]] = []
        failed: list[_task.Failed] = []
        for message in batch:
            answer = self._deliver(hook, message, self._key(context, message))
            if isinstance(answer, _task.Failed):
                failed.append(answer)
            else:
                answers.append(answer)
        _task.raise_for(failed, len(batch))
        return answers if self.each else answers[0]

    def _key(self, context: Context, message: Message) -> str:
        if not self.idempotency_key:
            return f"{message.id}:{self.task_id}:1"
        return self.idempotency_key + message.id.removeprefix(_task.message_id(context))

    def _deliver(self, hook: HttpHook, message: Message, key: str) -> dict[str, Any] | _task.Failed:
        from requests import exceptions

        content, content_type = _content(message.body)
        given = {name.lower() for name in self.headers}
        headers = {"Idempotency-Key": key, **({} if "content-type" in given else {"Content-Type": content_type})}
        what = f"{self.method} {self.endpoint or '/'}"
        try:
            response = hook.run(
                self.endpoint,
                data=cast("Any", content),
                headers={**headers, **self.headers},
                extra_options={
                    "check_response": False,
                    "allow_redirects": self.follow_redirects,
                    "timeout": self.timeout_s,
                },
            )
        except (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError) as error:
            return _task.Failed(message.id, f"{what} failed: {type(error).__name__}", Verdict.TRANSIENT)
        except exceptions.RequestException as error:
            return _task.Failed(message.id, f"{what} cannot be sent: {error}", Verdict.TERMINAL)
        return _answer(message, what, response)


def _content(body: Any) -> tuple[bytes, str]:
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        xml = body.lstrip().startswith("<?xml")
        return body.encode(), f"{'application/xml' if xml else 'text/plain'}; charset=utf-8"
    from continuitybridge.nodes.language import json_text

    return json_text.dumps(body).encode(), "application/json"


def _answer(message: Message, what: str, response: Response) -> dict[str, Any] | _task.Failed:
    from continuitybridge.nodes.http.answer import TRANSIENT_STATUSES

    status = response.status_code
    if 200 <= status < 300:
        return {"status": status, "body": _body(response)}
    transient = status in TRANSIENT_STATUSES or status >= 500
    detail = f"{what} answered {status}"
    if 300 <= status < 400:
        detail += ", a redirect that is not followed"
    elif excerpt := response.text[:_EXCERPT_CHARACTERS].strip():
        detail += f": {excerpt}"
    return _task.Failed(message.id, detail, Verdict.TRANSIENT if transient else Verdict.TERMINAL)


def _body(response: Response) -> Any:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return response.json()
        except ValueError:
            pass
    return response.text
