# SPDX-License-Identifier: GPL-3.0-or-later
"""The audio proxy, before a model server that answers with real speech."""

import asyncio
import base64
import contextlib
import functools
import io
import json
import subprocess
import sys
import threading
import time
import wave
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect

from sipbridge.proxy.model import Model, ModelError, format_wav
from sipbridge.proxy.server import MAX_UTTERANCE_S, Gatherer, ProxySettings, run_proxy
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.ports import free_port

MODEL_HZ = 24000
ANSWER = "The time is a quarter past nine."


@functools.cache
def speak(text: str) -> Samples:
    """At the model's rate, by espeak-ng."""
    spoken = subprocess.check_output(["espeak-ng", "--stdout", text])
    with wave.open(io.BytesIO(spoken)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
        return audio.resample(samples, sound.getframerate(), MODEL_HZ)


class ModelServer(BaseHTTPRequestHandler):
    """Answers each question with words and speech, piece by piece; `mode` says how it goes wrong."""

    requests: ClassVar[list[dict[str, Any]]] = []
    headers_seen: ClassVar[list[dict[str, str]]] = []
    mode: ClassVar[str] = ""
    pause_s: ClassVar[float] = 0.0
    broken_pipes: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ModelServer.requests.append({"path": self.path, **body})
        ModelServer.headers_seen.append(dict(self.headers))
        if self.mode == "refuses":
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"no more models today")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for line in self.lines():
                self.wfile.write(line.encode())
                self.wfile.flush()
                time.sleep(self.pause_s)
        except OSError:
            ModelServer.broken_pipes += 1

    def lines(self) -> Iterator[str]:
        if self.mode == "babbles":
            yield "data: {oh\n\n"
            return
        yield ": a comment\n\n"
        for word in ANSWER.split():
            yield self.event({"content": f"{word} "})
        if self.mode == "breaks":
            yield 'data: {"error": {"message": "out of memory"}}\n\n'
            return
        pcm = speak(ANSWER).tobytes()
        for start in range(0, len(pcm), 4801):  # half a sample at the end of most
            yield self.event({"audio": {"data": base64.b64encode(pcm[start : start + 4801]).decode()}})
        yield "data: [DONE]\n\n"

    @staticmethod
    def event(delta: dict[str, Any]) -> str:
        return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\r\n\r\n"

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def model_url() -> Iterator[str]:
    ModelServer.requests.clear()
    ModelServer.headers_seen.clear()
    ModelServer.mode, ModelServer.pause_s, ModelServer.broken_pipes = "", 0.0, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), ModelServer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.asynccontextmanager
async def caller(model_url: str, settings: ProxySettings | None = None) -> AsyncIterator[ClientConnection]:
    """A client of a proxy."""
    model = Model(model_url, model="m", token="secret")
    try:
        async with (
            run_proxy("127.0.0.1", 0, model, settings or ProxySettings()) as port,
            connect(f"ws://127.0.0.1:{port}", max_size=None) as call,
        ):
            yield call
    finally:
        await model.close()


async def say(call: ClientConnection, samples: Samples) -> None:
    """As a telephone does, but faster."""
    for start in range(0, len(samples), 320):
        await call.send(samples[start : start + 320].tobytes())


def question(seconds: float = 1.5) -> Samples:
    return np.concatenate((audio.speech(seconds, 16000), audio.silence(1.0, 16000)))


async def answer(call: ClientConnection, speech_s: float) -> tuple[list[dict[str, Any]], Samples]:
    """Texts and speech, until there is so much of that."""
    texts: list[dict[str, Any]] = []
    heard = np.zeros(0, np.int16)
    async with asyncio.timeout(20):
        while len(heard) < speech_s * 16000:
            message = await call.recv()
            if isinstance(message, str):
                texts.append(json.loads(message))
            else:
                heard = np.concatenate((heard, np.frombuffer(message, np.int16)))
    return texts, heard


def asked(request: dict[str, Any]) -> Samples:
    """The question that the model got."""
    (content,) = request["messages"][-1]["content"]
    assert content["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(content["input_audio"]["data"]))) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(sound.readframes(sound.getnframes()), np.int16)


def words(texts: list[dict[str, Any]]) -> str:
    return "".join(text["content"] for text in texts if text["type"] == "text").strip()


ANSWER_S = len(speak(ANSWER)) / MODEL_HZ


def test_a_question_and_its_answer(model_url: str) -> None:
    """What was said goes to the model, its words and its speech come back."""

    async def run() -> None:
        async with caller(model_url) as call:
            await call.send(json.dumps({"assistantPrompt": "Be brief.", "audioFormat": "pcm16", "mine": 1}))
            await say(call, question())
            texts, heard = await answer(call, ANSWER_S - 0.01)
            assert texts[0] == {"type": "clear"}
            assert words(texts) == ANSWER
            expected = audio.resample(speak(ANSWER), MODEL_HZ, 16000)
            assert audio.align_and_correlate(expected, heard, 16000)[1] > 0.98
            await say(call, question(1.0))
            await answer(call, 0.2)
        first, second = ModelServer.requests[:2]
        assert first["path"] == "/v1/chat/completions"
        assert (first["model"], first["stream"], first["audio"]["format"]) == ("m", True, "pcm16")
        assert first["messages"][0] == {"role": "system", "content": "Be brief."}
        assert ModelServer.headers_seen[0]["Authorization"] == "Bearer secret"
        assert audio.align_and_correlate(audio.speech(1.5, 16000), asked(first), 16000)[1] > 0.9
        assert second["messages"][1] == {"role": "assistant", "content": f"{ANSWER} "}

    asyncio.run(run())


def test_silence_asks_nothing(model_url: str) -> None:
    async def run() -> None:
        async with caller(model_url) as call:
            await say(call, audio.silence(5.0, 16000))
            await say(call, audio.tone(440, 2.0, 16000))
            await asyncio.sleep(0.3)
        assert ModelServer.requests == []

    asyncio.run(run())


def test_pieces_of_one_length(model_url: str) -> None:
    """Whatever is said in them."""

    async def run() -> None:
        async with caller(model_url, ProxySettings(chunk_duration_s=1.0)) as call:
            await say(call, audio.tone(440, 2.5, 16000))
            texts, _ = await answer(call, 2 * ANSWER_S - 0.02)
            assert words(texts).count("quarter") == 2
        assert [len(asked(request)) for request in ModelServer.requests] == [16000, 16000]

    asyncio.run(run())


def test_the_caller_interrupts(model_url: str) -> None:
    """The answer stops, the model is left, and the next question is answered."""
    ModelServer.pause_s = 0.05

    async def run() -> None:
        async with caller(model_url) as call:
            await say(call, question())
            await answer(call, 0.1)
            ModelServer.pause_s = 0.0
            await say(call, question(1.0))
            texts, _ = await answer(call, ANSWER_S - 0.1)
            assert {"type": "clear"} in texts
            assert len(ModelServer.requests) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("mode", "words_of_it"),
    [
        ("refuses", "The model has failed: 503: no more models today"),
        ("babbles", "The model has failed: an event that is no JSON"),
        ("breaks", "out of memory"),
    ],
)
def test_a_model_that_fails_ends_nothing(model_url: str, mode: str, words_of_it: str) -> None:
    """It is told in words, and a moment of silence; the next question is answered."""

    async def run() -> None:
        ModelServer.mode = mode
        async with caller(model_url) as call:
            await say(call, question())
            texts, heard = await answer(call, 0.5)
            assert words_of_it in words(texts)
            assert not heard.any()
            ModelServer.mode = ""
            await say(call, question(1.0))
            texts, heard = await answer(call, ANSWER_S - 0.1)
            assert ANSWER in words(texts)
            assert heard.any()

    asyncio.run(run())


def test_no_model_there() -> None:
    async def run() -> None:
        model = Model(f"http://127.0.0.1:{free_port()}/v1", model="m")
        with pytest.raises(ModelError, match="ConnectError"):
            async for _ in model.ask(format_wav(b"", 16000), []):
                pass
        await model.close()

    asyncio.run(run())


def test_what_makes_no_sense_is_ignored(model_url: str) -> None:
    """Texts of all kinds, half samples; another format is refused in words."""

    async def run() -> None:
        async with caller(model_url) as call:
            await call.send('{"audioFormat": "mp3", "vadThreshold": 7, "assistantPrompt": 1}')
            assert "mp3" in json.loads(await call.recv())["content"]
            for text in ("{", "[]", '{"type":"dtmf","digit":"5"}', "7"):
                await call.send(text)
            await call.send(b"\0")
            await call.send(b"")
            await say(call, question())
            texts, _ = await answer(call, 0.2)
            assert texts

    asyncio.run(run())


def test_two_callers_at_once(model_url: str) -> None:
    async def run() -> None:
        async with caller(model_url) as one, caller(model_url) as two:
            await asyncio.gather(say(one, question()), say(two, question(1.0)))
            (texts, _), (others, _) = await asyncio.gather(answer(one, 0.5), answer(two, 0.5))
            assert words(texts) == words(others) == ANSWER

    asyncio.run(run())


def test_a_caller_that_goes_leaves_nothing(model_url: str) -> None:
    ModelServer.pause_s = 0.05

    async def run() -> None:
        async with caller(model_url) as call:
            await say(call, question())
            await answer(call, 0.1)
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    deadline = time.monotonic() + 5
    while not ModelServer.broken_pipes and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ModelServer.broken_pipes == 1  # the model need not go on


def test_an_endless_utterance_is_bounded() -> None:
    """It is answered so far, again and again."""
    gatherer = Gatherer(None, 0.5)
    voice = np.resize(audio.speech(8.0, 16000, voice=2), round(16000 * 2.5 * MAX_UTTERANCE_S))
    done = [item for piece in np.array_split(voice, 700) for item in gatherer.feed(piece)]
    assert max(len(item) for item in done if item is not None) <= MAX_UTTERANCE_S * 16000


def test_the_command(model_url: str) -> None:
    """Listens, answers, and goes when it is told to."""
    port = free_port()
    command = [sys.executable, "-m", "sipbridge", "proxy", "--model-url", model_url, "--gather", "chunk"]
    process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"the audio proxy is listening at ws://127.0.0.1:{port}\n"

        async def run() -> None:
            async with connect(f"ws://127.0.0.1:{port}", max_size=None) as call:
                await say(call, audio.tone(440, 1.0, 16000))
                texts, _ = await answer(call, ANSWER_S - 0.01)
                assert words(texts) == ANSWER

        asyncio.run(run())
    finally:
        process.terminate()
        assert process.wait(10) == 0
        process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model-url", "localhost"], "--model-url"),
        (["--model-url", "http://x", "--gather", "words"], "'words' is neither vad nor chunk"),
        (["--model-url", "http://x", "--listen", "127.0.0.1"], "has no port"),
    ],
)
def test_a_wrong_command(arguments: list[str], complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sipbridge", "proxy", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert complaint in done.stderr
