# SPDX-License-Identifier: GPL-3.0-or-later
"""The WebRTC members of a measurement: each waits in a room of its own and says back what it hears.

A process of its own, ``python -m sipbridge.loadtest.webrtc URL ROOMS CODEC`` with the API's token in
`SIPBRIDGE_TOKEN`. Payloads go back as they came, so it needs no codec. It looks every 2 ms: on average that
is 1 ms of the delay that is measured.
"""

import asyncio
import contextlib
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import libdatachannel as dc

from sipbridge.loadtest.generator import LoadtestError
from sipbridge.rtc.webrtc import sdp
from sipbridge.rtc.webrtc.certificate import own_certificate

_LOOK_S = 0.002
_JOIN_S = 15.0
_HEADER_BYTES = 12


class Member:
    """One that has a track and nothing else: what goes over it is RTP as it is."""

    def __init__(self, codec: str) -> None:
        configuration = dc.Configuration()
        configuration.bind_address = "127.0.0.1"
        configuration.disable_auto_negotiation = True
        configuration.certificate_pem_file, configuration.key_pem_file = own_certificate()
        self._connection = dc.PeerConnection(configuration)
        self._sequence = 0
        self.ssrc = random.randrange(1, 1 << 32)
        self.track = self._connection.add_track(
            sdp.write_audio(
                "0",
                sdp.Direction.SENDRECV,
                [sdp.Codec.named(codec)],
                ssrc=self.ssrc,
                cname="load",
                stream_id="load",
                track_id="load",
            )
        )

    async def join(self, client: httpx.AsyncClient, room: str) -> None:
        """Returns when packets can go both ways.

        httpx.HTTPError where the bridge does not let it in, TimeoutError where no packet gets through.
        """
        async with asyncio.timeout(_JOIN_S):
            await self._join(client, room)

    async def _join(self, client: httpx.AsyncClient, room: str) -> None:
        offer = await self._offer()
        answer = await client.post(
            f"/v1/rooms/{room}/webrtc", content=offer, headers={"Content-Type": "application/sdp"}
        )
        answer.raise_for_status()
        self._connection.set_remote_description(dc.Description(answer.text, "answer"))
        while not self.track.is_open():
            await asyncio.sleep(0.01)

    async def _offer(self) -> str:
        self._connection.set_local_description(dc.Description.Type.Offer)
        while self._connection.gathering_state() != dc.PeerConnection.GatheringState.Complete:
            await asyncio.sleep(0.01)
        return str(self._connection.local_description())

    def echo(self) -> None:
        """Says back what has come."""
        while (packet := self.track.receive()) is not None:
            if 192 <= packet[1] <= 223:  # RTCP
                continue
            self._sequence = (self._sequence + 1) & 0xFFFF
            head = packet[:2] + struct.pack("!H", self._sequence) + packet[4:8] + struct.pack("!I", self.ssrc)
            self.track.send(head + packet[_HEADER_BYTES:])

    def close(self) -> None:
        self._connection.close()


async def _join_all(url: str, members: list[Member]) -> None:
    headers = {"Authorization": f"Bearer {os.environ['SIPBRIDGE_TOKEN']}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20.0) as client:
        for number, member in enumerate(members):
            await member.join(client, f"bench{number:03d}")


def _main(url: str, rooms: int, codec: str) -> None:
    members = [Member(codec) for _ in range(rooms)]
    asyncio.run(_join_all(url, members))
    print("joined", flush=True)
    while True:
        for member in members:
            member.echo()
        time.sleep(_LOOK_S)


@contextlib.contextmanager
def waiting(url: str, token: str, rooms: int, codec: str) -> Iterator[None]:
    """They are there within the block."""
    command = [sys.executable, "-m", "sipbridge.loadtest.webrtc", url, str(rooms), codec]
    environment = {**os.environ, "SIPBRIDGE_TOKEN": token}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "joined\n":
                raise LoadtestError("the WebRTC members of the measurement could not join")
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
