"""Google's credentials, found and renewed apart from the calls that need them. A metadata server that hangs holds
whoever asks it for half a minute, and Google's library has each caller ask: here one thread does so for all, who
wait for it no longer than for a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import google.auth
from google.auth.credentials import Credentials, TokenState
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from continuitybridge.errors import Unavailable

WAIT_S = 5.0
"""So long credentials are waited for."""
REMEMBERED_S = 2.0
"""That there were none is told again for so long, where nobody waited for that any more."""


class _Held(Credentials):
    """Credentials that a call uses as they are."""

    def __init__(self, found: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def before_request(self, _request: Any, _method: str, _url: str, headers: dict[str, str]) -> None:
        self._found.apply(headers)

    def refresh(self, _request: Any) -> None:
        # A token that was not taken: others are looked for, apart from the call.
        raise RefreshError("the token is not taken any more")  # type: ignore[no-untyped-call]


class Clients:
    """The client of one key, with credentials that hold. `make` makes one of credentials."""

    def __init__(self, make: Callable[[Any], Any], scopes: Sequence[str]) -> None:
        self._make = make
        self._scopes = scopes
        self._changing = threading.Lock()
        self._client: Any = None
        self._found: Any = None
        self._under_way: Future[Any] | None = None
        self._began = 0.0
        self._failed: BaseException | None = None
        self._failed_until = 0.0

    def get(self) -> Any:
        """The client. Raises what Google's library does where there are no credentials, and `Unavailable` when it
        takes longer than `WAIT_S` to get them."""
        with self._changing:
            client, found = self._client, self._found
            # An account's own key signs here: nobody is asked.
            state = TokenState.FRESH if found is None or _signs(found) else found.token_state
            if client is not None and state is TokenState.FRESH:
                return client
            now = time.monotonic()
            if self._failed is not None and now < self._failed_until:
                if client is not None and state is TokenState.STALE:
                    return client
                raise self._failed
            if self._under_way is None:
                self._under_way, self._began = Future(), now
                threading.Thread(
                    target=self._look, args=(self._under_way, found), name="google-credentials", daemon=True
                ).start()
            under_way, left_s = self._under_way, self._began + WAIT_S - now
        if client is not None and state is TokenState.STALE:
            # It holds for some minutes yet.
            return client
        try:
            return under_way.result(max(0.0, left_s))
        except TimeoutError:
            raise Unavailable("Google's credentials take long to be had", retry_after_s=5) from None

    def forget(self) -> None:
        """Look for credentials again when the client is wanted next."""
        with self._changing:
            self._client = self._found = None

    def _look(self, answer: Future[Any], found: Any) -> None:
        try:
            client = None
            if found is None:
                found, _ = google.auth.default(default_scopes=self._scopes)
                client = self._make(found if _signs(found) else _Held(found))
            if not _signs(found):
                found.refresh(Request())
        except BaseException as error:
            with self._changing:
                self._under_way = None
                if time.monotonic() > self._began + WAIT_S:
                    self._failed, self._failed_until = error, time.monotonic() + REMEMBERED_S
            answer.set_exception(error)
            return
        with self._changing:
            self._under_way = self._failed = None
            if client is not None:
                self._client, self._found = client, found
            answer.set_result(self._client if client is None else client)


def _signs(credentials: Any) -> bool:
    return isinstance(credentials, service_account.Credentials)
