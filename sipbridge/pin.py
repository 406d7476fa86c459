# SPDX-License-Identifier: GPL-3.0-or-later
"""A caller who has to know a number before it meets its channel: it is asked by a sound, and presses keys."""

import asyncio
import hmac
from pathlib import Path

import numpy as np

from sipbridge.config import PinConfig
from sipbridge.errors import MediaError
from sipbridge.leg import LegPort
from sipbridge.log import get_logger
from sipbridge.media import tones
from sipbridge.media.loop import MakeSource, MediaLoop, Source
from sipbridge.media.wav import open_wav

_MAX_KEYS = 32  # of one try; more are no PIN
_END = "#"


def _silence(rate_hz: int) -> tones.Clip:
    return tones.Clip(np.zeros(0, np.int16))


class PinDesk:
    """Asks one caller, whose call has been answered. Event loop."""

    def __init__(self, config: PinConfig, media: MediaLoop, port: LegPort, call_id: str) -> None:
        self._config = config
        self._media = media
        self._port = port
        self._log = get_logger(__name__, call_id=call_id)
        self._keys: asyncio.Queue[str] = asyncio.Queue()

    def press(self, digit: str) -> None:
        """A key of the caller's."""
        self._keys.put_nowait(digit)

    def stop(self) -> None:
        """The caller is gone."""
        self._keys.put_nowait("")

    async def ask(self) -> bool:
        """Whether the caller knows it, or has found it out by as many tries as there are."""
        config = self._config
        try:
            sound = config.prompt
            for _ in range(config.tries):
                await self._play(sound)
                said = await self._read()
                if said is None:
                    return False
                if hmac.compare_digest(said.encode(), config.code.get_secret_value().encode()):
                    return True
                self._log.info("a wrong PIN")
                sound = config.wrong or config.prompt
            return False
        finally:
            self._media.detach(self._port.port_id)

    async def _play(self, sound: Path | None) -> None:
        make: MakeSource = tones.hint
        if sound is not None:
            try:
                make = await asyncio.to_thread(open_wav, sound, int(self._port.rateHz()))
            except MediaError as error:
                self._log.error("a sound cannot be played", reason=str(error))
        self._media.attach(self._port.port_id, Source(make))

    async def _read(self) -> str | None:
        """What was pressed before the ``#``, or before nothing was for too long; None: the caller is gone."""
        said = ""
        try:
            while True:
                async with asyncio.timeout(self._config.timeout_s):
                    key = await self._keys.get()
                if not key:
                    return None
                if not said:  # nobody listens to the prompt any more
                    self._media.attach(self._port.port_id, Source(_silence))
                if key == _END:
                    return said
                said = (said + key)[: _MAX_KEYS + 1]
        except TimeoutError:
            return said
