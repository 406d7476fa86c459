# SPDX-License-Identifier: GPL-3.0-or-later
"""From names to addresses, in the order in which they are tried; the resolver is a table."""

import asyncio
import collections
import random
import socket
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.rdata
import dns.resolver
import pytest
from dns.rdtypes.IN.SRV import SRV

from sipbridge.errors import CallError, EndKind
from sipbridge.routing import DialPlan, SipUri
from sipbridge.sip.resolve import Destination, resolve_servers


class Resolver:
    """Answers for what it knows."""

    def __init__(self) -> None:
        self.srv: dict[str, list[str] | type[Exception]] = {}  # "priority weight port target"
        self.hosts: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def resolve(self, name: str, kind: str, lifetime: float) -> list[SRV]:
        assert kind == "SRV"
        assert 0 < lifetime < 10
        self.asked.append(name)
        records = self.srv.get(name, dns.resolver.NXDOMAIN)
        if isinstance(records, type):
            raise records
        made = [dns.rdata.from_text("IN", "SRV", record) for record in records]
        return [record for record in made if isinstance(record, SRV)]

    async def getaddrinfo(self, host: str, port: object, **options: object) -> list[Any]:
        self.asked.append(host)
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in self.hosts[host]]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(dns.asyncresolver, "resolve", resolver.resolve)
    monkeypatch.setattr(
        asyncio.BaseEventLoop, "getaddrinfo", lambda loop, *a, **kw: resolver.getaddrinfo(*a, **kw)
    )
    return resolver


def resolve(*uris: str) -> list[Destination]:
    plan = DialPlan("200", tuple(SipUri.parse(uri) for uri in uris))
    return asyncio.run(resolve_servers(plan))


def places(destinations: list[Destination]) -> list[tuple[str, int | None]]:
    return [(destination.host, destination.port) for destination in destinations]


def test_addresses_are_taken_as_they_are(resolver: Resolver) -> None:
    """Nobody is asked, and the request goes to what its URI says."""
    found = resolve("sip:200@192.0.2.1", "sip:200@[2001:db8::1]:5070;transport=tcp")
    assert places(found) == [("192.0.2.1", None), ("2001:db8::1", 5070)]
    assert [destination.next_hop for destination in found] == ["", ""]
    assert resolver.asked == []


def test_name_with_a_port(resolver: Resolver) -> None:
    """RFC 3263: a port means address records; each address once. The domain stays in the URI."""
    resolver.hosts["sip.example.com"] = ["192.0.2.1", "2001:db8::1", "192.0.2.1"]
    found = resolve("sip:200@sip.example.com:5070;transport=tcp")
    assert resolver.asked == ["sip.example.com"]
    assert [(destination.uri.uri, destination.next_hop) for destination in found] == [
        ("sip:200@sip.example.com:5070;transport=tcp", "sip:192.0.2.1:5070;transport=tcp"),
        ("sip:200@sip.example.com:5070;transport=tcp", "sip:[2001:db8::1]:5070;transport=tcp"),
    ]


@pytest.mark.parametrize(
    ("uri", "service"),
    [
        ("sip:200@example.com", "_sip._udp"),
        ("sip:200@example.com;transport=udp", "_sip._udp"),
        ("sip:200@example.com;transport=TCP", "_sip._tcp"),
        ("sip:200@example.com;transport=tls", "_sips._tcp"),
        ("sips:200@example.com", "_sips._tcp"),
        ("sips:200@example.com;transport=tcp", "_sips._tcp"),
    ],
)
def test_service_of_a_transport(resolver: Resolver, uri: str, service: str) -> None:
    """RFC 3263 section 4.1."""
    resolver.srv[f"{service}.example.com"] = ["10 10 5080 a.example.com."]
    resolver.hosts["a.example.com"] = ["192.0.2.1"]
    assert places(resolve(uri)) == [("192.0.2.1", 5080)]
    assert resolver.asked == [f"{service}.example.com", "a.example.com"]


def test_priorities(resolver: Resolver) -> None:
    """The lowest first, and after the servers of one URI those of the next."""
    resolver.srv["_sip._udp.example.com"] = [
        "30 99 5063 c.example.com.",
        "10 0 5061 a.example.com.",
        "20 50 5062 b.example.com.",
    ]
    resolver.hosts = {f"{name}.example.com": [f"192.0.2.{i}"] for i, name in enumerate("abc", 1)}
    found = resolve("sip:200@example.com", "sip:200@192.0.2.9")
    assert places(found) == [
        ("192.0.2.1", 5061),
        ("192.0.2.2", 5062),
        ("192.0.2.3", 5063),
        ("192.0.2.9", None),
    ]


def test_weights(resolver: Resolver) -> None:
    """RFC 2782: among equals the share of each is its weight's; weight 0 has hardly any."""
    weights = {"a": 60, "b": 30, "c": 10, "d": 0}
    resolver.srv["_sip._udp.example.com"] = [
        f"10 {weight} 5060 {name}.example.com." for name, weight in weights.items()
    ]
    resolver.hosts = {f"{name}.example.com": [name] for name in weights}

    async def resolve_often() -> list[str]:
        plan = DialPlan("200", (SipUri.parse("sip:200@example.com"),))
        return [(await resolve_servers(plan))[0].host for _ in range(2000)]

    random.seed(7)
    first = collections.Counter(asyncio.run(resolve_often()))
    for name, weight in weights.items():
        # three times the standard deviation of the count, and some
        assert first[name] == pytest.approx(20 * weight, abs=75)


@pytest.mark.parametrize("answer", [None, [], dns.exception.Timeout, dns.resolver.NoAnswer, OSError])
def test_domain_without_services(resolver: Resolver, answer: list[str] | type[Exception] | None) -> None:
    """Its own addresses stand in, at the transport's usual port."""
    if answer is not None:
        resolver.srv["_sip._udp.example.com"] = answer
    resolver.hosts["example.com"] = ["192.0.2.1"]
    found = resolve("sip:200@example.com")
    assert places(found) == [("192.0.2.1", None)]
    assert found[0].next_hop == "sip:192.0.2.1"


def test_one_host_of_several_has_no_address(resolver: Resolver) -> None:
    """The others are tried."""
    resolver.srv["_sip._udp.example.com"] = [
        "1 1 5060 gone.example.com.",
        "2 1 5060 b.example.com.",
        "3 1 5060 .",
    ]
    resolver.hosts["b.example.com"] = ["192.0.2.2"]
    assert places(resolve("sip:200@example.com", "sip:200@nowhere.example.com:5060")) == [("192.0.2.2", 5060)]


def test_nobody_has_an_address(resolver: Resolver) -> None:
    """The reason names each."""
    with pytest.raises(CallError) as caught:
        resolve("sip:200@one.example.com", "sip:200@two.example.com:5060")
    assert caught.value.reason.kind is EndKind.UNAVAILABLE
    assert caught.value.reason.code == 480
    assert caught.value.reason.detail == (
        "no address for one.example.com: Name or service not known; "
        "two.example.com: Name or service not known"
    )


def test_nothing_to_resolve(resolver: Resolver) -> None:
    """The contact of a phone is known already."""
    assert resolve() == []
