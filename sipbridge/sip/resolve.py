# SPDX-License-Identifier: GPL-3.0-or-later
"""From the servers of a trunk to where an INVITE is sent, one after the other (RFC 3263)."""

import asyncio
import ipaddress
import random
import socket
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception

from sipbridge.errors import CallError, EndKind, EndReason
from sipbridge.routing import DialPlan, SipUri

_DNS_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Destination:
    """One way to send an INVITE: what its Request-URI says, and the address that it goes to.

    Carriers know their customers by the domain of the Request-URI, so a name stays in it.
    """

    uri: SipUri
    host: str  # an IP address
    port: int | None = None

    @property
    def next_hop(self) -> str:
        """The URI of the address, "" where the Request-URI is that address."""
        if self.host == self.uri.host:
            return ""
        return SipUri(host=self.host, port=self.port or self.uri.port, params=self.uri.params).uri


async def resolve_servers(plan: DialPlan) -> list[Destination]:
    """The plan's URIs with their names looked up: SRV where no port is given, else the host's own addresses.

    Each URI stays in its place; those of one SRV answer go by priority, at random by weight (RFC 2782).
    CallError when none of them has an address.
    """
    found: list[Destination] = []
    failures: list[str] = []
    for uri in plan.request_uris:
        try:
            found += await _resolve(uri)
        except OSError as error:
            failures.append(f"{uri.host}: {error.strerror or error}")
    if not found and failures:
        raise CallError(EndReason(EndKind.UNAVAILABLE, f"no address for {'; '.join(failures)}"))
    return found


async def _resolve(uri: SipUri) -> list[Destination]:
    try:
        ipaddress.ip_address(uri.host)
        return [Destination(uri, uri.host, uri.port)]
    except ValueError:
        pass
    servers: list[tuple[str, int | None]] = [(uri.host, uri.port)]
    if uri.port is None:
        servers = [*await _srv(uri)] or servers
    found: list[Destination] = []
    failure: OSError | None = None
    for host, port in servers:
        try:
            found += [Destination(uri, address, port) for address in await _addresses(host)]
        except OSError as error:
            failure = error
    if failure is not None and not found:
        raise failure
    return found


async def _addresses(host: str) -> list[str]:
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


async def _srv(uri: SipUri) -> list[tuple[str, int]]:
    """Host and port by priority and weight; nothing when the domain has no such record."""
    secure = uri.scheme == "sips" or uri.transport == "tls"
    service = "_sips._tcp" if secure else "_sip._tcp" if uri.transport == "tcp" else "_sip._udp"
    try:
        answer = await dns.asyncresolver.resolve(f"{service}.{uri.host}", "SRV", lifetime=_DNS_TIMEOUT_S)
    except (dns.exception.DNSException, OSError):
        return []
    records = sorted(
        answer, key=lambda record: (record.priority, -(random.random() ** (1 / (record.weight or 0.01))))
    )
    return [(str(record.target).rstrip("."), record.port) for record in records]
