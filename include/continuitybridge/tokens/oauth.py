"""The OAuth 2.0 grants: what is asked of an authorization server, and what its answer means (RFC 6749, 7009, 7523,
7636, 8628). oauthlib writes the requests, `token_answer` reads the answers."""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from oauthlib.oauth2 import BackendApplicationClient, Client, DeviceClient, WebApplicationClient
from oauthlib.oauth2.rfc6749.parameters import prepare_token_request

from continuitybridge.connections.auth import OAuth2Auth
from continuitybridge.nodes.http.answer import Answer
from continuitybridge.nodes.http.wire import RawAnswer
from continuitybridge.tokens import calls, token_answer
from continuitybridge.tokens.calls import Failed, Refused
from continuitybridge.tokens.kept import Json, Obtained
from continuitybridge.tokens.signing import sign

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PASSING = frozenset(
    {
        *("temporarily_unavailable", "server_error", "internal_failure", "internal_error", "service_unavailable"),
        *("ratelimited", "rate_limited", "rate_limit_exceeded", "too_many_requests"),
    }
)
"""Errors that may pass: the standard's, and what servers say in their own words, with a status of 400 or 200."""
STANDING = frozenset({400, 401})
"""Statuses that stand, also where no error is named (RFC 6749, 5.2). A firewall's 403 may pass."""
DEVICE_INTERVAL_S = 5
"""Between two questions where the server names no other (RFC 8628, 3.2)."""
LONGEST_INTERVAL_S = 300
_ERROR_CHARACTERS = 200


def obtain(auth: OAuth2Auth, refresh: str | None) -> Obtained:
    """A token without anybody's help: by the refresh token where there is one, else by the grant. Raises `Refused`
    and `Failed`. The answer's refresh token takes the old one's place; where it has none, the old one stays."""
    if refresh is not None:
        body = Client(auth.client_id).prepare_refresh_body(refresh_token=refresh, scope=auth.scope or None)
        found = _token(auth, body)
        return found if found.refresh else Obtained(found.access, refresh, found.lifetime_s)
    if auth.grant == "client_credentials":
        body = BackendApplicationClient(auth.client_id).prepare_request_body(scope=auth.scope or None)
    elif auth.grant == "jwt_bearer" and auth.assertion is not None:
        signed = sign(auth.assertion, audience=str(auth.token_url)).value
        body = prepare_token_request(JWT_BEARER, assertion=signed, scope=auth.scope or None)
    else:
        raise Refused("nobody has connected the account, or its token ended and had come without a refresh token")
    found = _token(auth, body)
    # A refresh token is of no use here (RFC 6749, 4.4.3), and would outlive a changed secret.
    return Obtained(found.access, None, found.lifetime_s)


def by_code(auth: OAuth2Auth, code: str, *, redirect_uri: str, verifier: str) -> Obtained:
    """The token for an authorization code (RFC 6749, 4.1.3) with its PKCE verifier (RFC 7636)."""
    client = WebApplicationClient(auth.client_id)
    return _token(
        auth,
        client.prepare_request_body(
            code=code, redirect_uri=redirect_uri, code_verifier=verifier, include_client_id=False
        ),
    )


def by_device_code(auth: OAuth2Auth, device_code: str) -> Obtained:
    """The token for a device code (RFC 8628, 3.4). `Refused.code` says why there is none yet."""
    return _token(auth, DeviceClient(auth.client_id).prepare_request_body(device_code))


def device(auth: OAuth2Auth) -> Json:
    """What a person is to be shown, and the device code (RFC 8628, 3.1 and 3.2)."""
    url = str(auth.device_authorization_url)
    asked = {"client_id": auth.client_id, **({"scope": auth.scope} if auth.scope else {})}
    answer = _ask(auth, url, urlencode(asked))
    if answer.status != 200:
        raise _error(answer, url)
    found = token_answer.fields(answer.content)
    expires_in, interval = token_answer.number(found.get("expires_in")), token_answer.number(found.get("interval"))
    given = {
        "device_code": token_answer.text(found.get("device_code")),
        "user_code": token_answer.text(found.get("user_code")),
        "verification_uri": found.get("verification_uri") or found.get("verification_url"),
    }
    complete = found.get("verification_uri_complete") or None
    if not all(isinstance(each, str) and each for each in given.values()) or not expires_in or expires_in <= 0:
        raise Failed(f"{calls.host(url)} gave no device code")
    if not all(_is_page(each) for each in (given["verification_uri"], complete) if each is not None):
        raise Failed(f"{calls.host(url)} names an address for the code that is no page")
    return {
        **given,
        "verification_uri_complete": complete,
        "expires_in": expires_in,
        "interval": DEVICE_INTERVAL_S if interval is None else int(min(max(1.0, interval), LONGEST_INTERVAL_S)),
    }


def revoke(auth: OAuth2Auth, token: str, hint: str) -> None:
    """Tell the authorization server that a token is not used any more (RFC 7009). Raises `Refused`, `Failed`."""
    if auth.revocation_url is None:
        return
    url = str(auth.revocation_url)
    answer = _ask(auth, url, urlencode({"token": token, "token_type_hint": hint}))
    if answer.status != 200:
        raise _error(answer, url)


def _ask(auth: OAuth2Auth, url: str, body: str) -> RawAnswer:
    """A request that shows who the client is (RFC 6749, 2.3)."""
    secret = auth.client_secret.get_secret_value() if auth.client_secret is not None else None
    headers: dict[str, str] = {}
    more = dict(auth.parameters)
    if auth.client_auth == "basic" and secret is not None:
        headers["authorization"] = calls.basic(auth.client_id, secret)
    elif auth.client_id:
        if "client_id=" not in body:
            more["client_id"] = auth.client_id
        if auth.client_auth == "post" and secret is not None:
            more["client_secret"] = secret
    return calls.post(url, "&".join(filter(None, (body, urlencode(more)))), headers=headers)


def _token(auth: OAuth2Auth, body: str) -> Obtained:
    url = str(auth.token_url)
    answer = _ask(auth, url, body)
    if answer.status not in (200, 201):
        raise _error(answer, url)
    try:
        return token_answer.read(answer.content)
    except token_answer.NoToken as missing:
        if missing.error:
            raise _named(missing.error, answer, url) from None
        raise Failed(f"{calls.host(url)} gave no token that can be read") from None


def _error(answer: RawAnswer, url: str) -> Refused | Failed:
    """What an answer without a token says (RFC 6749, 5.2)."""
    return _named(token_answer.named(token_answer.fields(answer.content)), answer, url)


def _named(code: str, answer: RawAnswer, url: str) -> Refused | Failed:
    # The code alone: what a server writes beside it may quote what it was sent.
    shown = "".join(each for each in code if each.isalnum() or each in "_-.")[:_ERROR_CHARACTERS]
    said = f"{calls.host(url)} answered {shown or answer.status}"
    passing = code in PASSING or answer.status in (408, 425, 429) or answer.status >= 500
    if passing or (not code and answer.status not in STANDING):
        return Failed(said, retry_after_s=Answer(answer.status, answer.headers).retry_after_s)
    return Refused(said, code=code)


def _is_page(address: object) -> bool:
    """Whether a person can be led there: what comes from a server may be `javascript:…`."""
    try:
        parts = urlsplit(address) if isinstance(address, str) else None
        return parts is not None and parts.scheme in ("https", "http") and bool(parts.hostname)
    except ValueError:
        return False
