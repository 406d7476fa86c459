# SPDX-License-Identifier: GPL-3.0-or-later
"""Sound files: playing them into a call, and recording what is heard."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from sipbridge.errors import MediaError
from sipbridge.media.tones import Clip
from sipbridge.resample import resample_whole

log = logging.getLogger(__name__)

MAX_DURATION_S = 3600.0  # a file is held in memory whole: at 48 kHz an hour is 345 MB
_BLOCK_FRAMES = 1 << 16

_FLUSH_INTERVAL_S = 0.1
_QUEUE_S = 5.0  # how long the disk may stall before samples are dropped
_HEADER_BYTES = 44
_MAX_DATA_BYTES = 0xFFFF_FFFF - _HEADER_BYTES  # sizes in a WAV file have 32 bits


# What calls play at the moment, by path, time of change and rate: decoded once, gone with the last call.
_decoded: weakref.WeakValueDictionary[tuple[Path, int, int], NDArray[np.int16]] = (
    weakref.WeakValueDictionary()
)


def _load(path: Path, rate_hz: int) -> NDArray[np.int16]:
    key = (path, path.stat().st_mtime_ns, rate_hz)
    samples = _decoded.get(key)
    if samples is None:
        samples = _decode(path, rate_hz)
        samples.flags.writeable = False
        _decoded[key] = samples
    return samples


def _decode(path: Path, rate_hz: int) -> NDArray[np.int16]:
    with soundfile.SoundFile(path) as file:
        if file.frames > MAX_DURATION_S * file.samplerate:
            raise MediaError(f"{path}: longer than {MAX_DURATION_S:.0f} s")
        parts = [np.zeros(0, np.int16)]
        for block in file.blocks(_BLOCK_FRAMES, dtype="float32", always_2d=True):
            mono = np.rint(32768 * np.nan_to_num(block.mean(axis=1)))
            parts.append(np.clip(mono, -32768, 32767).astype(np.int16))
        return resample_whole(np.concatenate(parts), file.samplerate, rate_hz)


class WavSource(Clip):
    """A sound file, read as int16 samples at `rate_hz`, once or in a loop.

    Takes what libsndfile reads, so WAV of 8 to 32 bits, float, µ-law and A-law, also FLAC and Ogg; channels
    are averaged into one. The file is decoded and resampled here, in the constructor: not for the media
    thread. `read` is.
    """

    def __init__(self, path: Path, rate_hz: int, loop: bool = False) -> None:
        """Raises MediaError for a file that is missing, unreadable, no sound, or too long."""
        try:
            samples = _load(path, rate_hz)
        except OSError as error:
            raise MediaError(f"{path}: {error.strerror or error}") from error
        except soundfile.SoundFileError as error:
            raise MediaError(f"{path}: cannot be read as a sound file ({error})") from error
        super().__init__(samples, loop)


class LateWavSource:
    """A sound file for the media thread, which cannot wait: a thread reads it, until then it is silence."""

    def __init__(self, path: Path, rate_hz: int, loop: bool = False) -> None:
        self._source: Clip | None = None
        threading.Thread(target=self._load, args=(path, rate_hz, loop), name="wav", daemon=True).start()

    def _load(self, path: Path, rate_hz: int, loop: bool) -> None:
        try:
            self._source = WavSource(path, rate_hz, loop)
        except MediaError as error:
            log.warning("not played: %s", error)
            self._source = Clip(np.zeros(0, np.int16))

    def read(self, count: int) -> NDArray[np.int16]:
        """The next `count` samples; fewer at the end, none after it. Not to be written to."""
        source = self._source
        return np.zeros(count, np.int16) if source is None else source.read(count)


def open_wav(path: Path, rate_hz: int, loop: bool = False) -> Callable[[int], WavSource | LateWavSource]:
    """Reads a file for a leg of this rate. What is returned makes its source, also when that rate changes.

    Raises MediaError, see `WavSource`. Not for the media thread; what is returned is.
    """
    first = WavSource(path, rate_hz, loop)
    return lambda asked_hz: first if asked_hz == rate_hz else LateWavSource(path, asked_hz, loop)


class WavRecorder:
    """Writes a 16-bit WAV file from a thread of its own.

    What came so far is a valid file at any time, should the process end. When nothing more can be written
    (disk full, file too large), the file ends there and `truncated` is set.
    """

    def __init__(self, path: Path, rate_hz: int, channels: int = 1) -> None:
        """Create the file; raises MediaError when that fails."""
        self.path = path
        self.rate_hz = rate_hz
        self.channels = channels
        self.truncated = False
        self._frame_bytes = 2 * channels
        self._data_bytes = 0
        self._queue: deque[bytes] = deque()
        self._max_queued = int(_QUEUE_S * rate_hz * channels)
        # Samples; each is counted by one thread only, so that none needs a lock.
        self._refused = 0
        self._queued = 0
        self._taken = 0
        self._closing = threading.Event()
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise MediaError(f"{path}: cannot record: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def duration_s(self) -> float:
        """How much has reached the file."""
        return self._data_bytes / (self._frame_bytes * self.rate_hz)

    @property
    def dropped_samples(self) -> int:
        """How many were given, but not written: the disk was too slow, or the file has ended."""
        return self._refused + max(0, self._taken - self._data_bytes // 2)

    def write(self, samples: NDArray[np.int16]) -> None:
        """Append (n,) or (n, channels); copies and returns at once. From one thread at a time."""
        fill = self._queued - self._taken
        if self._closing.is_set() or self.truncated or fill + samples.size > self._max_queued:
            self._refused += samples.size
            return
        self._queued += samples.size
        self._queue.append(samples.astype("<i2").tobytes())

    def close(self) -> None:
        """Write what is queued and end the file. Waits for the disk; may be called again."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        with self._file:
            self._append(self._header())
            while not self._closing.wait(_FLUSH_INTERVAL_S):
                self._flush()
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._queue.popleft() for _ in range(len(self._queue)))
        if data and not self.truncated:
            self._data_bytes += self._append(data[: _MAX_DATA_BYTES - self._data_bytes])
            self.truncated |= self._data_bytes >= _MAX_DATA_BYTES
            # The header's place is taken already, so this needs no room on the disk.
            with contextlib.suppress(OSError):
                os.pwrite(self._file.fileno(), self._header(), 0)
        self._taken += len(data) // 2

    def _append(self, data: bytes) -> int:
        """Write as much as the disk takes, give its length."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self.truncated = True
        return len(data) - len(rest)

    def _header(self) -> bytes:
        data_bytes = self._data_bytes - self._data_bytes % self._frame_bytes
        return struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            b"RIFF",
            _HEADER_BYTES - 8 + data_bytes,
            b"WAVE",
            b"fmt ",
            16,
            1,  # PCM
            self.channels,
            self.rate_hz,
            self.rate_hz * self._frame_bytes,
            self._frame_bytes,
            16,
            b"data",
            data_bytes,
        )
