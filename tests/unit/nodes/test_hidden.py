"""What of a credential is told nowhere: the value, its parts, and both in other notations."""

from __future__ import annotations

import base64
import html
import json
import secrets
from urllib.parse import quote, quote_plus

import pytest

from continuitybridge.nodes import hidden
from continuitybridge.nodes.base import ConnectionInfo


def told(connection: ConnectionInfo, text: str) -> str:
    return hidden.without(text, hidden.of_connection(connection), "***")


@pytest.mark.parametrize(
    "written",
    [
        str,
        lambda value: quote(value, safe=""),
        quote_plus,
        html.escape,
        lambda value: json.dumps({"got": value}),
        lambda value: json.dumps({"got": value}, ensure_ascii=False),
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: f"Token {value}, again",
    ],
)
def test_a_value_is_found_in_every_notation(written: object) -> None:
    value = f'pä "{secrets.token_urlsafe(12)}" & more'
    connection = ConnectionInfo("erp", "https://erp.example", auth={"type": "bearer", "token": value})
    text = told(connection, f"<{written(value)}>")  # type: ignore[operator]
    for piece in (value, *value.split('"')[1:2], base64.b64encode(value.encode()).decode()[:20]):
        assert piece not in text
        assert piece not in html.unescape(text)


def test_the_parts_of_what_is_sent_are_hidden_too() -> None:
    one, two = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    cookie = ConnectionInfo(
        "erp", "https://x", auth={"type": "api_key", "header": "Cookie", "value": f"sid={one}; Path={two}"}
    )
    scheme = ConnectionInfo(
        "erp", "https://x", auth={"type": "api_key", "header": "Authorization", "value": f"Token {one}"}
    )
    basic = ConnectionInfo("erp", "https://x", auth={"type": "basic", "username": "anna", "password": one})
    pair = base64.b64encode(f"anna:{one}".encode()).decode()
    assert told(cookie, f"{two} and {one}") == "*** and ***"
    assert told(scheme, f"you said {one}") == "you said ***"
    assert told(basic, f"{one} is {pair.rstrip('=')} of anna").startswith("*** is ***")
    assert "anna" in told(basic, "of anna in Authorization, basic"), "what is no secret stays"


def test_a_connection_string_is_more_than_its_whole() -> None:
    password = f"p%ss/{secrets.token_urlsafe(9)}"
    text = f"postgresql://reader:{quote(password, safe='')}@db.internal:5432/stock?application_name=the-bridge"
    hide = hidden.forms([text])
    for part in ("reader", password, quote(password, safe=""), "db.internal", "stock", "the-bridge"):
        assert hidden.without(f"({part})", hide, "***") == "(***)", part
    account = secrets.token_urlsafe(24)
    assert account not in hidden.without(
        f"no {account}", hidden.forms([f"Name=shop;Key={account};Tls=true"]), "***"
    )


def test_data_is_searched_as_deep_as_it_goes() -> None:
    value = secrets.token_urlsafe()
    data = {"a": [{value: [value.encode(), 7, None]}], "b": f"x{value}"}
    assert hidden.without_any(data, hidden.forms([value]), "*") == {"a": [{"*": ["*", 7, None]}], "b": "x*"}
    assert hidden.without_any(data, (), "*") is data
