# SPDX-License-Identifier: GPL-3.0-or-later
"""Where else LiveKit Cloud may be joined: its regions, the nearest first. Event loop.

A project of LiveKit Cloud has one address for all regions, which leads to the nearest; where that fails,
those of the others are tried. A server of one's own has no regions, and is asked for none.
"""

import asyncio
import time
import urllib.parse
from dataclasses import dataclass

import httpx
from google.protobuf import json_format
from livekit.protocol.rtc import RegionSettings

from sipbridge.log import get_logger
from sipbridge.rtc.livekit.token import Entry

CLOUD_DOMAINS = ("livekit.cloud", "livekit.run")
_FRESH_S = 300.0  # that what was said is believed; it is kept until something else is said
_ANSWER_S = 3.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    at_s: float  # of the monotonic clock
    urls: tuple[str, ...]


_known: dict[str, _Known] = {}  # by the project's address
_asking: dict[str, asyncio.Task[None]] = {}


def is_cloud(url: str) -> bool:
    """Whether this server has regions."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return False  # who goes there will say so
    return any(host.endswith(f".{domain}") for domain in CLOUD_DOMAINS)


def learn(entry: Entry) -> None:
    """Has them asked for where they are not known, or not lately; nobody waits for it.

    While all is well, that is: whoever could say them may be what fails later.
    """
    if not is_cloud(entry.url) or entry.url in _asking:
        return
    known = _known.get(entry.url)
    if known is None or time.monotonic() - known.at_s > _FRESH_S:
        task = _asking[entry.url] = asyncio.ensure_future(_ask(entry))
        task.add_done_callback(lambda _: _asking.pop(entry.url))


async def find(entry: Entry, timeout_s: float) -> tuple[str, ...]:
    """The addresses of all regions in their order, as `learn` brings them within that time, or has before."""
    if entry.url in _asking:
        await asyncio.wait([_asking[entry.url]], timeout=timeout_s)
    known = _known.get(entry.url)
    return known.urls if known is not None else ()


async def _ask(entry: Entry) -> None:
    parts = urllib.parse.urlsplit(entry.url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    try:
        async with asyncio.timeout(_ANSWER_S), httpx.AsyncClient() as client:
            response = await client.get(
                f"{scheme}://{parts.netloc}/settings/regions",
                headers={"Authorization": f"Bearer {entry.token}"},
            )
        if response.is_success:
            settings = json_format.Parse(response.text, RegionSettings(), ignore_unknown_fields=True)
            _known[entry.url] = _Known(time.monotonic(), urls_of(settings))
            return
        why = f"the server answers {response.status_code}"
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, json_format.ParseError) as error:
        why = str(error) or type(error).__name__
    _log.warning("the regions of LiveKit Cloud cannot be learnt", url=entry.url, reason=why)


def urls_of(settings: RegionSettings) -> tuple[str, ...]:
    """As the server has put them in order."""
    return tuple(region.url for region in settings.regions if region.url)
