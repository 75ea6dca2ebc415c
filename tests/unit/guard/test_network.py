"""Whose a request is: addresses as they are written, and what trusted proxies say of them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from continuitybridge.guard import network

TRUSTED = network.networks(("10.0.0.0/8", "2001:db8:ffff::/48"))


def test_addresses_and_networks_are_read_and_what_is_none_is_refused() -> None:
    assert [str(each) for each in network.networks(("192.0.2.7/24", "198.51.100.1"))] == [
        "192.0.2.0/24",
        "198.51.100.1/32",
    ]
    with pytest.raises(ValueError, match="nowhere"):
        network.networks(("192.0.2.0/24", "nowhere"))


def test_an_ipv4_network_that_is_written_as_ipv6_is_what_addresses_are_looked_for_in() -> None:
    given = ("::ffff:203.0.113.0/120", "::ffff:198.51.100.7", "::/0", "2001:db8::/32")
    assert [str(each) for each in network.networks(given)] == [
        "203.0.113.0/24",
        "198.51.100.7/32",
        "::/0",
        "2001:db8::/32",
    ]
    sender = network.read("::ffff:203.0.113.9")
    assert network.within(sender, network.networks(given[:1]))
    assert not network.within(sender, network.networks(given[1:]))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("nowhere", None),
        ("203.0.113.7:80", None),
        ("", None),
    ],
)
def test_an_address_is_one_however_it_is_written(text: str, read: str | None) -> None:
    expected = None if read is None else ip_address(read)
    assert network.read(text) == expected
    assert network.peer({"client": (text, 4711)}) == expected


@pytest.mark.parametrize("scope", [{}, {"client": None}])
def test_who_comes_by_no_address_is_nobody(scope: dict[str, Any]) -> None:
    assert network.peer(scope) is None
    assert not network.within(None, TRUSTED)


@pytest.mark.parametrize(
    ("peer", "forwarded", "sender"),
    [
        ("198.51.100.9", b"203.0.113.7", "198.51.100.9"),
        ("10.0.0.1", b"203.0.113.7", "203.0.113.7"),
        ("2001:db8:ffff::1", b"[2001:db8::7]", "2001:db8::7"),
        ("10.0.0.1", b"1.1.1.1, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"1.1.1.1,203.0.113.7 ,10.1.2.3,10.2.2.2", "203.0.113.7"),
        ("10.0.0.1", b"10.9.9.9,10.1.2.3", "10.9.9.9"),
        ("10.0.0.1", b"1.1.1.1, 203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", b"203.0.113.7, [2001:db8::7]:4711,10.1.2.3:80", "2001:db8::7"),
        ("10.0.0.1", b"203.0.113.7:4711:1", None),
        ("10.0.0.1", b"203.0.113.7:555556", None),
        ("10.0.0.1", b"203.0.113.7, nonsense", None),
        ("10.0.0.1", b"203.0.113.7, \xff", None),
        ("10.0.0.1", b"203.0.113.7,", None),
        ("10.0.0.1", b"203.0.113.7, ,10.1.2.3", None),
        ("10.0.0.1", b"", None),
        ("10.0.0.1", None, None),
        (None, b"203.0.113.7", None),
    ],
)
def test_a_trusted_proxy_says_who_sent_and_nobody_else_does(
    peer: str | None, forwarded: bytes | None, sender: str | None
) -> None:
    found = None if peer is None else ip_address(peer)
    headers = {} if forwarded is None else {b"x-forwarded-for": forwarded}
    assert network.sender(found, headers, TRUSTED) == (None if sender is None else ip_address(sender))
    assert network.sender(found, headers, ()) == found, "no proxy is trusted"


def test_of_a_long_way_the_last_steps_are_looked_at() -> None:
    proxy = ip_address("10.0.0.1")
    for hops, sender in ((15, "203.0.113.7"), (16, "10.0.0.2")):
        forwarded = b"203.0.113.7" + b",10.0.0.2" * hops
        assert network.sender(proxy, {b"x-forwarded-for": forwarded}, TRUSTED) == ip_address(sender)


@pytest.mark.parametrize(
    ("address", "account"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::/64"),
    ],
)
def test_an_address_goes_on_its_own_account_and_one_of_ipv6_on_its_networks(address: str, account: str) -> None:
    assert network.account(ip_address(address)) == account


def test_of_a_request_all_lines_of_the_header_are_read_and_a_proxy_that_names_nobody_asks_for_itself() -> None:
    def of(*lines: bytes, peer: str = "10.0.0.1") -> str:
        headers = [(b"accept", b"*/*"), *((b"x-forwarded-for", each) for each in lines)]
        return str(network.sender_of({"client": (peer, 4711), "headers": headers}, TRUSTED))

    assert of(b"1.1.1.1, 203.0.113.7", b"10.1.2.3") == "203.0.113.7"
    assert of(b"203.0.113.7", b"203.0.113.8") == "203.0.113.8"
    assert of() == "10.0.0.1"
    assert of(b"nonsense") == "None"
    assert of(b"1.1.1.1", peer="203.0.113.9") == "203.0.113.9"
    assert str(network.sender_of({"client": None, "headers": []}, TRUSTED)) == "None"
