"""`access_token`: one call at the authorization server, however many ask.

**Guarantee.** While a token that has ended is being obtained, exactly one call is under way for it, in whatever
number of threads, processes and machines: the call is made under a lease in the token's row, extended while the
call runs, and whoever comes meanwhile waits for its result. So a rotating refresh token is used once.

**Where it stops.** A process that dies between the server's answer and its storing takes the answer along; no
bookkeeping here can bring it back. The attempt was written down before, so the next process knows, and asks once
more with the old refresh token: servers that allow it a short while give another; others answer `invalid_grant`,
and the account has to be connected again. The same holds for a process that is cut from the database for longer
than `BRIDGE_TOKEN_LEASE_S` while it calls; it goes on trying to store what it got for `SAVE_PATIENCE_S`, and what
comes late is kept unless a later attempt brought something.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from uuid import uuid4

from continuitybridge import secrets
from continuitybridge.connections import Definition
from continuitybridge.connections.auth import CookieAuth, OAuth2Auth
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.settings import get_settings
from continuitybridge.tokens import oauth, session, store
from continuitybridge.tokens.calls import Failed, Refused
from continuitybridge.tokens.kept import Obtained, Place, Token
from continuitybridge.vault.keyring import Cipher

SAVE_PATIENCE_S = 60.0
"""So long is tried to store an answer while the database is away."""
FIRST_LOOK_S = 0.02
LONGEST_LOOK_S = 0.25
"""Who waits for another process looks after ever longer pauses between these."""

log = logging.getLogger(__name__)

_turns: dict[Place, threading.Lock] = {}
"""Of one process only one thread looks, the others wait for it here."""
_of_turns = threading.Lock()


def _after_fork_in_child() -> None:
    global _of_turns
    _of_turns = threading.Lock()
    _turns.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def access_token(
    place: Place,
    definition: Definition,
    keys: Cipher,
    *,
    refused: int | None = None,
    ahead: bool = False,
    again: bool = False,
    wait_s: float | None = None,
) -> Token:
    """A token of the connection that may be used, obtained if need be.

    `refused` is the generation of one that the destination did not take, `ahead` wants another before it ends,
    `again` also where the last answer stands (`store.begin`).
    Blocks for at most `wait_s` (`BRIDGE_TOKEN_WAIT_S`); a call that takes longer goes on, and is there for whoever
    asks next. Raises `ReconnectNeeded` (terminal), at once where that is known, and `Unavailable` (transient) when
    the server does not answer or the wait is over.
    """
    wait_s = get_settings().token_wait_s if wait_s is None else wait_s
    ends = time.monotonic() + wait_s
    turn = _turn(place)
    if not turn.acquire(timeout=wait_s):
        raise _waited(place)
    try:
        pause_s = FIRST_LOOK_S
        while True:
            step = store.begin(place, definition, keys, uuid4().hex, refused=refused, ahead=ahead, again=again)
            if isinstance(step, Token):
                return step
            if isinstance(step, store.Lease):
                _called(place, step, definition, keys, ends)
                # What is stored now is this answer, or a better one.
                ahead = again = False
                continue
            if time.monotonic() + pause_s > ends:
                raise _waited(place)
            time.sleep(pause_s * random.uniform(0.75, 1.25))  # noqa: S311  (spreads load)
            pause_s = min(LONGEST_LOOK_S, pause_s * 1.5)
    finally:
        turn.release()


def _called(place: Place, lease: store.Lease, definition: Definition, keys: Cipher, ends: float) -> None:
    """Make the call in a thread of its own, which ends with it and not with the caller's patience: an answer that
    is under way is stored, also while the process is told to end."""
    done: Future[None] = Future()

    def call() -> None:
        try:
            _call(place, lease, definition, keys)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=call, name="bridge-token", daemon=False).start()
    try:
        done.result(max(0.0, ends - time.monotonic()))
    except TimeoutError:
        raise _waited(place) from None


def _call(place: Place, lease: store.Lease, definition: Definition, keys: Cipher) -> None:
    """Make the call, and write down what came of it. Raises `Unavailable`."""
    if lease.abandoned:
        log.warning("the last attempt at a token for %s ended without a word; asking once more", place)
    with _extended(place, lease):
        try:
            got = _obtained(definition, lease.refresh)
        except Refused as refused:
            if definition.outside and refused.code != "invalid_grant":
                # The client's secret may be another by now: it is read again.
                secrets.forget_outside(place.organization_id)
                if not store.doubt(place, lease):
                    raise _put_off(place, lease, refused.reason, None, keys) from None
            store.give_up(place, lease, refused.reason, keys)
        except Failed as failed:
            raise _put_off(place, lease, failed.reason, failed.retry_after_s, keys) from None
        except Exception as error:
            log.exception("a token for %s could not be asked for", place)
            raise _put_off(place, lease, f"a defect: {type(error).__name__}", None, keys) from None
        else:
            _saved(place, lease, definition, got, keys)


def _put_off(
    place: Place, lease: store.Lease, reason: str, retry_after_s: float | None, keys: Cipher
) -> Unavailable:
    wait_s = store.put_off(place, lease, reason, retry_after_s, keys)
    return Unavailable(
        f"no token for the connection {place.connection!r} now: {reason}",
        connection=place.connection,
        retry_after_s=wait_s,
    )


def _obtained(definition: Definition, refresh: str | None) -> Obtained:
    auth = definition.auth
    if isinstance(auth, OAuth2Auth):
        return oauth.obtain(auth, refresh)
    if isinstance(auth, CookieAuth):
        return session.log_in(auth, definition.base_url)
    raise ConfigurationError(f"the connection {definition.name!r} needs no token", connection=definition.name)


def _saved(place: Place, lease: store.Lease, definition: Definition, got: Obtained, keys: Cipher) -> None:
    ends = time.monotonic() + SAVE_PATIENCE_S
    while True:
        try:
            store.save(place, lease, definition, got, keys)
            return
        except Unavailable:
            if time.monotonic() > ends:
                log.error("the token that was obtained for %s could not be stored, and is lost", place)
                raise
            time.sleep(0.5)


@contextmanager
def _extended(place: Place, lease: store.Lease) -> Iterator[None]:
    """The lease holds as long as this does."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(get_settings().token_lease_s / 3):
            try:
                store.extend(place, lease)
            except Exception as error:
                log.warning("the lease for the token of %s could not be extended: %s", place, error)

    thread = threading.Thread(target=beat, name="bridge-token-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _turn(place: Place) -> threading.Lock:
    with _of_turns:
        return _turns.setdefault(place, threading.Lock())


def _waited(place: Place) -> Unavailable:
    return Unavailable(
        f"the token of the connection {place.connection!r} is being obtained and takes long",
        connection=place.connection,
        retry_after_s=5.0,
    )
