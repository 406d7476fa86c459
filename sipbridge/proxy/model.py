# SPDX-License-Identifier: GPL-3.0-or-later
"""The model: one question in speech, an answer in pieces of text and speech.

The interface is OpenAI's chat completions with audio, which other model servers offer as well: WAV in
base64 goes out, server-sent events with text, and PCM16 in base64, come back.
"""

import base64
import io
import json
import wave
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import httpx

_MAX_EVENT_BYTES = 16 << 20  # one event of the stream; a longer one is no answer
_MAX_ERROR_CHARS = 200


class ModelError(Exception):
    """The model cannot be reached, or does not answer as it should; its text says how."""


def format_wav(pcm: bytes, rate_hz: int) -> bytes:
    """A WAV file of PCM16LE, mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(pcm)
    return file.getvalue()


class Model:
    """A model server. Event loop."""

    def __init__(
        self, url: str, *, model: str, token: str = "", voice: str = "alloy", timeout_s: float = 30.0
    ) -> None:
        """`timeout_s` is for the connection, and between two pieces of an answer."""
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._voice = voice
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_s)

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, wav: bytes, history: Sequence[Mapping[str, Any]]) -> AsyncGenerator[str | bytes]:
        """The answer to what is said in `wav`: texts, and PCM16LE at the model's rate. ModelError."""
        sound = {"data": base64.b64encode(wav).decode(), "format": "wav"}
        body = {
            "model": self._model,
            "modalities": ["text", "audio"],
            "audio": {"voice": self._voice, "format": "pcm16"},
            "stream": True,
            "messages": [
                *history,
                {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]},
            ],
        }
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    raise ModelError(f"{response.status_code}: {text[:_MAX_ERROR_CHARS]}")
                async for event in _events(response):
                    for piece in _pieces(event):
                        yield piece
        except httpx.HTTPError as error:
            raise ModelError(f"{type(error).__name__} {error}".strip()) from error


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of the server-sent events, until the one that says it is done."""
    buffer = b""
    async for chunk in response.aiter_bytes():
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > _MAX_EVENT_BYTES:
            raise ModelError("an event without an end")
        for line in lines:
            name, _, data = line.strip().partition(b":")
            if name != b"data":
                continue  # a comment, or a field that is of no use
            if data.strip() == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                raise ModelError("an event that is no JSON") from None
            if isinstance(event, dict):
                yield event


def _pieces(event: dict[str, Any]) -> list[str | bytes]:
    """What an event adds to the answer."""
    if "error" in event:
        raise ModelError(str(event["error"])[:_MAX_ERROR_CHARS])
    pieces: list[str | bytes] = []
    for choice in event.get("choices") or []:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            continue
        audio = delta.get("audio")
        texts = [delta.get("content")]
        if isinstance(audio, dict):
            texts.append(audio.get("transcript"))
            data = audio.get("data")
            if isinstance(data, str) and data:
                try:
                    pieces.append(base64.b64decode(data))
                except ValueError:
                    raise ModelError("audio that is no base64") from None
        pieces += [text for text in texts if isinstance(text, str) and text]
    return pieces
