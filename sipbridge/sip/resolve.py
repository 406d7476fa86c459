# SPDX-License-Identifier: GPL-3.0-or-later
"""From the servers of a trunk to what is dialled, one after the other (RFC 3263)."""

import asyncio
import dataclasses
import ipaddress
import random
import socket

import dns.asyncresolver
import dns.exception

from sipbridge.errors import CallError, EndKind, EndReason
from sipbridge.routing import DialPlan, SipUri

_DNS_TIMEOUT_S = 3.0


async def resolve_servers(plan: DialPlan) -> list[SipUri]:
    """The plan's URIs with names looked up: SRV where no port is given, else the host's own address.

    Each stays in its place; those of one SRV answer go by priority, at random by weight (RFC 2782).
    CallError when none of them has an address.
    """
    found: list[SipUri] = []
    failures: list[str] = []
    for uri in plan.request_uris:
        try:
            found += await _resolve(uri)
        except OSError as error:
            failures.append(f"{uri.host}: {error.strerror or error}")
    if not found and failures:
        raise CallError(EndReason(EndKind.UNAVAILABLE, f"no address for {'; '.join(failures)}"))
    return found


async def _resolve(uri: SipUri) -> list[SipUri]:
    try:
        ipaddress.ip_address(uri.host)
        return [uri]
    except ValueError:
        pass
    if uri.port is None:
        records = await _srv(uri)
        if records:
            return [dataclasses.replace(uri, host=host, port=port) for host, port in records]
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(uri.host, None, type=socket.SOCK_DGRAM)
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    return [dataclasses.replace(uri, host=address) for address in addresses]


async def _srv(uri: SipUri) -> list[tuple[str, int]]:
    """Host and port by priority and weight; nothing when the domain has no such record."""
    service = {"tls": "_sips._tcp", "tcp": "_sip._tcp"}.get(uri.transport, "_sip._udp")
    try:
        answer = await dns.asyncresolver.resolve(f"{service}.{uri.host}", "SRV", lifetime=_DNS_TIMEOUT_S)
    except (dns.exception.DNSException, OSError):
        return []
    records = sorted(
        answer, key=lambda record: (record.priority, -(random.random() ** (1 / (record.weight or 0.01))))
    )
    return [(str(record.target).rstrip("."), record.port) for record in records]
