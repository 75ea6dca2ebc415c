"""Which addresses a tenant's calls may reach, however they are written, and what a superadmin allows beside."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from continuitybridge.egress import Policy, parse_rules
from continuitybridge.egress.addresses import literal, plain
from continuitybridge.errors import ConfigurationError, EgressRefused, Verdict
from continuitybridge.nodes.http import address
from continuitybridge.settings import Settings, get_settings


class Ports(BaseModel):
    """Settings with servers of our own."""

    http_port: int = 8080
    warehouse_port: int = 8090
    mail_port: int | None = None
    redis_url: SecretStr | None = SecretStr("redis://:secret@10.1.1.1/0")
    database_url: SecretStr | None = SecretStr("postgresql://u:p@10.1.1.2,10.1.1.3:5433/db")


def policy(allow: str = "") -> Policy:
    return Policy.of(allow, Ports())


def permits(found: Policy, host: str, port: int = 443) -> bool:
    known = literal(host)
    assert known is not None
    return found.permits(known, host, port)


INNER = [
    "127.0.0.1", "127.255.255.255", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "0.0.0.0",
    "0.1.2.3", "100.64.0.1", "100.127.255.255", "169.254.169.254", "169.254.0.1", "192.0.0.192", "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "100.100.100.200",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1",
    "2001::1", "3fff::1", "5f00::1", "4000::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip


@pytest.mark.parametrize("host", INNER)
def test_what_is_not_of_the_public_internet_is_not_called(host: str) -> None:
    assert not permits(policy(), host)
    with pytest.raises(EgressRefused) as refused:
        policy().check(host, 443)
    assert refused.value.verdict is Verdict.TERMINAL
    assert refused.value.facts == {"host": host, "port": 443}


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_the_public_internet_is_called(host: str) -> None:
    assert permits(policy(), host)


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("2130706433", "127.0.0.1"),
        ("017700000001", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"), ("127.0.0.1.", "127.0.0.1"),
        ("0xA9FEA9FE", "169.254.169.254"), ("[::1]", "::1"), ("0", "0.0.0.0"), ("::ffff:7f00:1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)  # fmt: skip
def test_an_address_is_known_however_it_is_written(written: str, means: str) -> None:
    found = literal(written)
    assert found is not None
    assert plain(found) == ip_address(means)


@pytest.mark.parametrize(
    "name", ["a.example", "localhost", "127.0.0.1.example", "0x.example", "1e100.net", "", "0xg"]
)
def test_a_name_is_no_address(name: str) -> None:
    assert literal(name) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/x", "http://0x7f.1/{{ body.id }}", "http://2130706433", "http://localhost:9/", "http://localhost./",
        "http://a.localhost/", "http://[::ffff:127.0.0.1]/", "http://１２７。０。０。１/", "http://⑯⑨。②⑤④.169.254/latest",
        "https://[fd00:ec2::254]/", "http://10.0.0.1.:8080/",
    ],
)  # fmt: skip
def test_an_address_that_is_written_down_shows_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_EGRESS_ALLOW", "")
    get_settings.cache_clear()
    try:
        with pytest.raises(EgressRefused):
            address.check(url)
        address.check("http://inner.example/ is judged when it is called")
        address.check("no address")
    finally:
        get_settings.cache_clear()


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_ipv4_address_in_ipv6_is_judged_as_what_it_stands_for(found: IPv4Address | IPv6Address) -> None:
    here = policy()
    if isinstance(found, IPv4Address):
        mapped, nat64 = IPv6Address(f"::ffff:{found}"), IPv6Address(f"64:ff9b::{found}")
        plain = here.permits(found, str(found), 443)
        assert here.permits(mapped, str(mapped), 443) == here.permits(nat64, str(nat64), 443) == plain
    if here.permits(found, str(found), 443):
        assert found.is_global
        assert not found.is_private
        assert not found.is_multicast


# ---------------------------------------------------------------- what a superadmin allows
@pytest.mark.parametrize(
    ("allow", "host", "port", "allowed"),
    [
        ("10.0.0.0/8", "10.2.3.4", 443, True),
        ("10.0.0.0/8", "::ffff:10.2.3.4", 443, True),
        ("10.0.0.0/8", "64:ff9b::10.2.3.4", 443, True),
        ("10.0.0.0/8", "11.0.0.0", 443, True),
        ("10.0.0.0/8", "192.168.0.1", 443, False),
        ("10.0.0.0/8:443", "10.2.3.4", 443, True),
        ("10.0.0.0/8:443", "10.2.3.4", 444, False),
        ("127.0.0.1:8090", "127.0.0.1", 8090, True),
        ("127.0.0.1:8090", "127.0.0.1", 8091, False),
        ("127.0.0.1:8090", "127.0.0.2", 8090, False),
        ("[::1]:8090", "::1", 8090, True),
        ("fd00::/8", "fd12::1", 443, True),
        ("0.0.0.0/0, ::/0", "192.168.0.1", 443, True),
        ("0.0.0.0/0, ::/0", "169.254.169.254", 80, False),
        ("0.0.0.0/0, ::/0", "fd00:ec2::254", 80, False),
        ("0.0.0.0/0, ::/0", "64:ff9b::a9fe:a9fe", 80, False),
        ("169.254.169.254", "169.254.169.254", 80, True),
        ("0.0.0.0/0", "127.0.0.1", 8080, False),
        ("127.0.0.1:8080", "127.0.0.1", 8080, False),
        ("127.0.0.1:8080", "0.0.0.0", 8080, False),
        ("127.0.0.0/8", "127.3.2.1", 8080, False),
        ("127.0.0.0/8", "127.0.0.1", 8974, False),
        ("10.0.0.0/8", "10.1.1.1", 6379, False),
        ("10.0.0.0/8", "10.1.1.1", 6380, True),
        ("10.0.0.0/8", "10.1.1.2", 5432, False),
        ("10.0.0.0/8", "10.1.1.3", 5433, False),
        ("10.0.0.0/8", "64:ff9b::10.1.1.3", 5433, False),
    ],
)
def test_what_is_allowed_is_called_but_never_the_platform_itself(
    allow: str, host: str, port: int, allowed: bool
) -> None:
    assert permits(policy(allow), host, port) is allowed


def test_a_name_that_is_allowed_may_lead_anywhere_but_to_credentials_and_the_platform() -> None:
    here = policy("ERP.internal:8443, wms")
    inner = IPv4Address("10.0.0.5")
    assert here.permits(inner, "erp.Internal.", 8443)
    assert here.permits(inner, "wms", 80)
    assert not here.permits(inner, "erp.internal", 443)
    assert not here.permits(inner, "x.erp.internal", 8443)
    assert not here.permits(IPv4Address("169.254.169.254"), "wms", 80)
    assert not here.permits(IPv4Address("127.0.0.1"), "wms", 8080)


@pytest.mark.parametrize(
    "text",
    ["10.0.0.1/8", "10.0.0.0/33", "a b", "http://a/", "a:b", "a:0", "a:65536", "[::1]:x", "-a", "a,,b!", "*"],
)
def test_a_rule_that_cannot_be_read_stops_the_start(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_EGRESS_ALLOW", text)
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match="BRIDGE_EGRESS_ALLOW"):
        get_settings()
    monkeypatch.undo()
    get_settings.cache_clear()


def test_rules_are_written_as_they_are_read() -> None:
    text = "10.0.0.0/8, 127.1:8090, [::1]:443, fd00::/8, [fd00::]:1, Erp.internal:8443, wms, 10.0.0.0/8:22"
    rules = parse_rules(text)
    assert parse_rules(",".join(map(str, rules))) == rules


def test_a_policy_is_handed_to_another_process_as_data() -> None:
    before = policy("10.0.0.0/8, [::1]:443, erp.internal:8443")
    assert Policy.from_data(json.loads(json.dumps(before.to_data()))) == before


def test_every_port_of_the_platform_is_among_its_own() -> None:
    ports = Settings.model_construct().egress.ports
    assert {8080, 8081, 5433, 6380, 8793, 8794} <= ports
    assert 8090 not in ports, "the demo's warehouse is there to be called"
