"""What of a credential is told nowhere: the value, its parts, and both in other notations."""

from __future__ import annotations

import base64
import html
import json
import re
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
        lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")),
        lambda value: quote(value, safe="/!'()*"),
        html.escape,
        lambda value: "".join(f"&#{ord(each)};" if not each.isalnum() else each for each in value),
        lambda value: "".join(f"&#x{ord(each):X};" if each in "\"&+'<>" else each for each in value),
        lambda value: value.replace("&", "&amp;").replace('"', "&quot;").replace("/", "&sol;"),
        lambda value: json.dumps({"got": value}).replace("/", r"\/"),
        lambda value: "".join(f"\\u{ord(each):04x}" if not each.isalnum() else each for each in value),
        lambda value: "".join(f"\\u{ord(each):04X}" if each in "+&<>'ä" else each for each in json.dumps(value)),
        lambda value: json.dumps({"got": value}),
        lambda value: json.dumps({"got": value}, ensure_ascii=False),
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: f"Token {value}, again",
    ],
)
def test_a_value_is_found_in_every_notation(written: object) -> None:
    value = f'pä "{secrets.token_urlsafe(12)}" & a/b+c= more'
    connection = ConnectionInfo("erp", "https://erp.example", auth={"type": "bearer", "token": value})
    text = told(connection, f"<{written(value)}>")  # type: ignore[operator]
    assert "***" in text
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
    secret, whole = hidden.forms([text]), hidden.forms([text], all_parts=True)
    for part in (password, quote(password, safe="")):
        assert hidden.without(f"({part})", secret, "***") == "(***)", part
    for part in ("reader", password, quote(password, safe=""), "db.internal", "stock", "the-bridge"):
        assert hidden.without(f"({part})", whole, "***") == "(***)", part
    account = secrets.token_urlsafe(24)
    assert account not in hidden.without(
        f"no {account}", hidden.forms([f"Name=shop;Key={account};Tls=true"]), "***"
    )


@pytest.mark.parametrize(
    ("value", "secret", "words"),
    [
        ("Bearer {}", "{}", "Bearer"),
        ("Bearer correct-horse", "correct-horse", "Bearer"),
        (
            "postgresql://orders:require@db1.internal.example:5432/orders?sslmode=require&sslcert=public",
            "require@",
            (),
        ),
        ("postgresql://u:{}@orders.example/orders?sslmode=require", "{}", "orders require sslmode postgresql"),
        (
            "Server=tcp:orders.example,1433;Database=orders;User=reader;Password=winter",
            "winter",
            "orders reader tcp",
        ),
        ("sid={}; Path=/orders; HttpOnly; SameSite=Strict", "{}", "orders HttpOnly SameSite Strict Path"),
        ("https://hooks.example/services/{}", "{}", "services hooks.example"),
        ("https://api.example/orders?apikey=winter2&format=compact", "winter2", "orders compact format"),
        ('Token token="{}", realm="orders"', "{}", "orders realm"),
        ("ABCD-EFGH-IJKL-MNOP other", "ABCD-EFGH-IJKL-MNOP", ()),
        ("AWS4-HMAC-SHA256 SignedHeaders=content;host, Signature={}", "{}", "AWS4-HMAC-SHA256 content"),
    ],
)
def test_of_the_parts_secrets_are_hidden_and_words_are_not(value: str, secret: str, words: str) -> None:
    token = secrets.token_urlsafe(18)
    hide = hidden.forms([value.format(token)])
    assert secret.format(token) not in hidden.without(f"no {secret.format(token)}.", hide, "***")
    for word in words.split() if words else ():
        assert hidden.without(f"the {word} of it", hide, "***") == f"the {word} of it"


def test_what_is_not_escaped_is_not_taken_for_it() -> None:
    hide = hidden.forms(["a+b/c-secret"])
    for text in ("a&#43;b", "50% of a+b", r"a\u002bb\/c-secre", "&amp; %2f \\ + a-b"):
        assert hidden.without(text, hide, "***") == text
    assert hidden.without(r"say a\u002bb&#x2F;c%2dsecret twice: a+b/c-secret", hide, "***") == "say *** twice: ***"


def test_data_is_searched_as_deep_as_it_goes() -> None:
    value = secrets.token_urlsafe()
    data = {"a": [{value: [value.encode(), 7, None]}], "b": f"x{value}"}
    assert hidden.without_any(data, hidden.forms([value]), "*") == {"a": [{"*": ["*", 7, None]}], "b": "x*"}
    assert hidden.without_any(data, (), "*") is data
