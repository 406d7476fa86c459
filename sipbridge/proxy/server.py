# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy's server: one conversation a connection, in the protocol of `sipbridge.rtc.websocket.proxy`.

::

    binary ──► gather ──► utterance ──► WAV ──► model ──► text, PCM ──► resample ──► text, binary
               (VAD, or pieces of a length)       │
                                                  └─ fails: a text that says so, and a moment of silence

The caller interrupts: an answer is given up when the next utterance begins.
"""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from picows.websockets import ConnectionClosed
from picows.websockets.asyncio.server import ServerConnection, serve

from sipbridge.media.vad import SpeechGate, SpeechStarted, SpeechStopped, VadSettings, VoiceDetector
from sipbridge.proxy.model import Model, ModelError, format_wav
from sipbridge.resample import make_resampler

log = logging.getLogger(__name__)

type Samples = NDArray[np.int16]

RATE_HZ = 16000
MAX_MESSAGE_BYTES = 1 << 20
MAX_UTTERANCE_S = 30.0  # a longer one is answered so far
MIN_UTTERANCE_S = 0.2  # a shorter one is no question
_MAX_WAITING = 4  # pieces that were gathered while the model answers; then the oldest is dropped
_HISTORY = 20  # answers that the model is reminded of
_SILENCE_S = 0.5  # in place of an answer that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """How the proxy gathers and answers."""

    chunk_duration_s: float | None = None  # pieces of this length; None: utterances, by VAD
    model_rate_hz: int = 24000  # of the speech that the model answers with
    prompt: str = ""  # unless the call brings its own


class Gatherer:
    """Utterances out of a stream: by voice activity, or in pieces of one length."""

    def __init__(self, chunk_duration_s: float | None, threshold: float) -> None:
        self._chunk = None if chunk_duration_s is None else round(chunk_duration_s * RATE_HZ)
        self._gate: SpeechGate | None = None
        if self._chunk is None:
            self._gate = SpeechGate(VoiceDetector(RATE_HZ, VadSettings(threshold=threshold)))
        self._parts: list[Samples] = []
        self._size = 0

    def feed(self, samples: Samples) -> list[Samples | None]:
        """Hear more; what is complete now, and None where somebody begins to speak."""
        done: list[Samples | None] = []
        if self._gate is None:
            self._add(samples, done)
            return done
        for item in self._gate.feed(samples):
            if isinstance(item, SpeechStarted):
                done.append(None)
            elif isinstance(item, SpeechStopped):
                self._finish(done)
            else:
                self._add(item, done)
        return done

    def _add(self, samples: Samples, done: list[Samples | None]) -> None:
        most = self._chunk or round(MAX_UTTERANCE_S * RATE_HZ)
        while samples.size:
            part, samples = samples[: most - self._size], samples[most - self._size :]
            self._parts.append(part)
            self._size += part.size
            if self._size == most:
                self._finish(done)

    def _finish(self, done: list[Samples | None]) -> None:
        if self._chunk is not None or self._size >= MIN_UTTERANCE_S * RATE_HZ:
            done.append(np.concatenate(self._parts))
        self._parts, self._size = [], 0


class Conversation:
    """One call: reads in the connection's own task, answers in one more."""

    def __init__(self, call: ServerConnection, model: Model, settings: ProxySettings) -> None:
        self._call = call
        self._model = model
        self._settings = settings
        self._prompt = settings.prompt
        self._threshold = VadSettings().threshold
        self._gatherer: Gatherer | None = None  # from the first audio on
        self._waiting: deque[Samples] = deque(maxlen=_MAX_WAITING)
        self._arrived = asyncio.Event()
        self._answers: deque[str] = deque(maxlen=_HISTORY)
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        work = asyncio.ensure_future(self._work())
        try:
            async for message in self._call:
                if isinstance(message, str):
                    await self._read_text(message)
                else:
                    await self._read_audio(bytes(message))
        except ConnectionClosed:
            pass
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _read_text(self, text: str) -> None:
        """The configuration, before any audio; keys and such are nothing to a model."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            log.warning("a text message that is no JSON is ignored")
            return
        if not isinstance(message, dict) or "type" in message or self._gatherer is not None:
            return
        prompt, threshold = message.get("assistantPrompt"), message.get("vadThreshold")
        if isinstance(prompt, str):
            self._prompt = prompt
        if isinstance(threshold, int | float):
            self._threshold = min(0.99, max(0.01, threshold))
        if message.get("audioFormat", "pcm16") not in ("pcm16", "pcm"):
            await self._tell_text(f"audioFormat {message['audioFormat']!r} is not spoken here, but pcm16")

    async def _tell_text(self, text: str) -> None:
        await self._call.send(json.dumps({"type": "text", "content": text}))

    async def _read_audio(self, data: bytes) -> None:
        if self._gatherer is None:
            self._gatherer = Gatherer(self._settings.chunk_duration_s, self._threshold)
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.int16)
        for utterance in self._gatherer.feed(samples):
            if utterance is None:
                await self._interrupt()
            else:
                self._waiting.append(utterance)
                self._arrived.set()

    async def _interrupt(self) -> None:
        """The caller speaks: what is being answered is of no interest any more."""
        self._waiting.clear()
        if self._answering is not None:
            self._answering.cancel()
        await self._call.send(json.dumps({"type": "clear"}))

    async def _work(self) -> None:
        """Answers one utterance after another."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                self._answering = asyncio.ensure_future(self._answer(self._waiting.popleft()))
                try:
                    await asyncio.wait((self._answering,))
                finally:
                    self._answering.cancel()
                if not self._answering.cancelled() and (error := self._answering.exception()) is not None:
                    if isinstance(error, ConnectionClosed):
                        return
                    log.error("a fault while answering", exc_info=error)
                self._answering = None

    async def _answer(self, utterance: Samples) -> None:
        """Streams the model's answer; a failure is told in words, and ends nothing."""
        history = [{"role": "assistant", "content": text} for text in self._answers]
        if self._prompt:
            history.insert(0, {"role": "system", "content": self._prompt})
        rate_hz = self._settings.model_rate_hz
        resampler = make_resampler("polyphase", rate_hz, RATE_HZ, 1) if rate_hz != RATE_HZ else None
        words: list[str] = []
        half = b""
        wav = format_wav(utterance.astype("<i2").tobytes(), RATE_HZ)
        try:
            async with contextlib.aclosing(self._model.ask(wav, history)) as answer:
                async for piece in answer:
                    if isinstance(piece, str):
                        words.append(piece)
                        await self._tell_text(piece)
                        continue
                    data = half + piece
                    data, half = data[: len(data) // 2 * 2], data[len(data) // 2 * 2 :]
                    samples = np.frombuffer(data, "<i2").astype(np.int16)
                    if resampler is not None:
                        samples = resampler.process(samples.reshape(1, -1))[0]
                    await self._call.send(samples.astype("<i2").tobytes())
        except ModelError as error:
            log.warning("the model has failed: %s", error)
            await self._tell_text(f"The model has failed: {error}")
            await self._call.send(bytes(2 * round(_SILENCE_S * RATE_HZ)))
        if words:
            self._answers.append("".join(words))


@contextlib.asynccontextmanager
async def run_proxy(host: str, port: int, model: Model, settings: ProxySettings) -> AsyncIterator[int]:
    """Accepts calls within the block; gives the port. OSError when it is not free."""

    async def talk(call: ServerConnection) -> None:
        await Conversation(call, model, settings).run()

    async with serve(talk, host, port, compression=None, max_size=MAX_MESSAGE_BYTES) as server:
        yield int(next(iter(server.sockets)).getsockname()[1])
