# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole conversations over sockets, in real time, with agents made with another WebSocket package."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from sipbridge.config import AgentConfig, Config, VadConfig
from sipbridge.errors import EndKind, EndReason, Party, RtcError
from sipbridge.media.tones import Tone
from sipbridge.routing import Target
from sipbridge.rtc.base import RtcConnection
from sipbridge.rtc.websocket import session as session_module
from sipbridge.rtc.websocket.audiosocket import format_message
from sipbridge.rtc.websocket.connection import WebSocketConnection, fill_parameters
from sipbridge.rtc.websocket.protocol import MAX_MESSAGE_BYTES
from sipbridge.rtc.websocket.proxy import ProxyProtocol
from tests.support import audio
from tests.support.agents import Agent, Line, agent, call, echo, join, listen, until, until_hears
from tests.support.certificates import Authority
from tests.support.codecs import Pcmu, Samples
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import HUNG_UP, make_context
from tests.support.ports import free_port

PHONE_HZ = 700.0
AGENT_HZ = 440.0
STREAMS = ("proxy", "twilio", "telnyx", "vonage", "jambonz", "asterisk", "openai")


def in_real_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test of a coroutine function, on a common event loop."""

    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__wrapped__ = test  # type: ignore[attr-defined]
    return run


def configure(url: str | list[str], **fields: Any) -> Config:
    urls = (url,) if isinstance(url, str) else tuple(url)
    return Config(agent=(AgentConfig(name="a", url=urls, **fields),))


def ulaw_media(samples: Samples) -> str:
    payload = base64.b64encode(Pcmu().encode(samples)).decode()
    return json.dumps({"event": "media", "streamSid": "MZ", "media": {"payload": payload}})


def kinds(line: Line) -> list[str]:
    return [told[0] for told in line.told]


# ---------------------------------------------------------------- audio


@pytest.mark.parametrize("rate_hz", [8000, 16000])
@pytest.mark.parametrize("protocol", STREAMS)
@in_real_time
async def test_echo(protocol: str, rate_hz: int) -> None:
    """A telephone hears itself by way of an agent, in every protocol, at the right pitch."""
    async with agent(echo, **subprotocols(protocol)) as server:
        line = Line(rate_hz)
        line.say(Tone(PHONE_HZ, rate_hz))
        async with call(configure(server.url, protocol=protocol), "agent:a", line):
            await until_hears(line, PHONE_HZ)
            assert line.told == []
        assert server.connections[0].subprotocol == subprotocols(protocol).get("subprotocols", [None])[0]


def subprotocols(protocol: str) -> dict[str, Any]:
    name = {"jambonz": "audio.jambonz.org", "asterisk": "media"}.get(protocol)
    return {"subprotocols": [name]} if name else {}


@pytest.mark.parametrize("bare", [False, True])
@in_real_time
async def test_audiosocket_echo(bare: bool) -> None:
    """Over TCP; the id comes first, silence at once, and the end is told."""
    came = bytearray()

    async def say_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(3)
                payload = await reader.readexactly(int.from_bytes(head[1:], "big"))
                came.extend(head[:1])
                if head[0] == 0x10:
                    writer.write(head + payload)
        writer.close()

    server = await asyncio.start_server(say_back, "127.0.0.1", 0)
    url = f"audiosocket://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = Config() if bare else configure(url, protocol="audiosocket")
    line = Line()
    async with call(config, url if bare else "agent:a", line) as (_, connection):
        line.say(Tone(PHONE_HZ, 8000))
        await until_hears(line, PHONE_HZ)
        await connection.send_dtmf("5", 100)
        await until(lambda: 0x03 in came)
    await until(lambda: came[-1] == 0x00)
    assert came[:2] == b"\x01\x10"
    server.close()


@in_real_time
async def test_bare_url_with_a_protocol() -> None:
    """`ws://…` is spoken to as `proxy`, or as what its fragment says."""
    async with agent(listen) as server, call(Config(), f"{server.url}#twilio"):
        await until(lambda: server.objects(event="media"))
    async with agent(listen) as server:
        async with call(Config(), server.url):
            await until(lambda: server.messages)
        message = server.messages[0]
        assert isinstance(message, bytes)
        assert len(message) == 640


@in_real_time
async def test_frames_of_another_length() -> None:
    async with agent(listen) as server, call(configure(server.url, frame_ms=60), "agent:a"):
        await until(lambda: len(server.messages) > 2)
        assert {len(message) for message in server.messages} == {3 * 640}


@in_real_time
async def test_a_codec_that_changes() -> None:
    """The agent hears and is heard on, at the rate that it has had."""
    async with agent(echo) as server:
        line = Line()
        line.say(Tone(PHONE_HZ, 8000))
        async with call(configure(server.url), "agent:a", line):
            await until_hears(line, PHONE_HZ)
            line.stop()
            assert line._route is not None
            assert line._route.make is not None
            line.sample_rate_hz = 48000
            line.say(Tone(PHONE_HZ, 48000))
            line._source = line._route.make(48000)
            line.heard_frames.clear()
            line._running, line._thread = True, type(line._thread)(target=line._run, daemon=True)
            line._thread.start()
            await until_hears(line, PHONE_HZ)


# ---------------------------------------------------------------- Twilio's marks and clear


@in_real_time
async def test_mark_is_answered_when_it_was_heard() -> None:
    """An answer of a second in one message; its mark comes back when the line has sent it."""
    came: list[float] = []

    async def talk(server: Agent, connection: ServerConnection) -> None:
        await connection.send(ulaw_media(audio.tone(AGENT_HZ, 1.0)))
        await connection.send('{"event":"mark","streamSid":"MZ","mark":{"name":"end"}}')
        async for message in connection:
            if json.loads(message)["event"] == "mark":
                came.append(time.monotonic())

    async with agent(talk) as server, call(configure(server.url, protocol="twilio"), "agent:a") as (line, _):
        await until(lambda: came)
        loud = [at for at, frame in line.heard_frames if np.abs(frame).max() > 500]
        assert len(loud) in (50, 51)  # with what fades out
        assert came[0] >= loud[-1]
        await asyncio.sleep(0.1)
        assert not line.is_loud()


@in_real_time
async def test_clear_is_heard_at_once() -> None:
    """60 s at once, interrupted, then other speech: marks come back, nothing is left over, no delay stays."""
    sent: dict[str, float] = {}
    marks: list[str] = []
    go_on = asyncio.Event()

    async def talk(server: Agent, connection: ServerConnection) -> None:
        second = ulaw_media(audio.tone(AGENT_HZ, 1.0))
        for number in range(60):
            await connection.send(second)
            await connection.send(json.dumps({"event": "mark", "mark": {"name": str(number)}}))
        await go_on.wait()
        await connection.send('{"event":"clear","streamSid":"MZ"}')
        sent["clear"] = time.monotonic()
        while len(marks) < 60:
            message = json.loads(await connection.recv())
            if message["event"] == "mark":
                marks.append(message["mark"]["name"])
        sent["speech"] = time.monotonic()
        await connection.send(ulaw_media(audio.tone(1000.0, 1.0)))
        await listen(server, connection)

    async with agent(talk) as server, call(configure(server.url, protocol="twilio"), "agent:a") as (line, _):
        await until(lambda: len(line.heard_frames) > 60 and line.is_loud())
        go_on.set()
        await until(lambda: "speech" in sent)
        assert marks == [str(number) for number in range(60)]
        await until_hears(line, 1000.0)
        late = [at - sent["clear"] for at, frame in line.heard_frames if at > sent["clear"] and frame.any()]
        first = next(at for at in late if at > sent["speech"] - sent["clear"])
        assert [at for at in late if 0.06 < at < first] == []
        assert first - (sent["speech"] - sent["clear"]) < 0.06
        assert len(line.clears) == 1


@in_real_time
async def test_keys_and_messages_reach_the_agent() -> None:
    async with (
        agent(listen) as server,
        call(configure(server.url, protocol="twilio"), "agent:a") as (_, link),
    ):
        await link.send_dtmf("7", 160)
        await until(lambda: server.objects(event="dtmf"))
        assert server.objects(event="dtmf")[0]["dtmf"] == {"track": "inbound_track", "digit": "7"}
        await link.send_message("not in this protocol")
    async with agent(listen) as server, call(configure(server.url), "agent:a") as (_, link):
        await link.send_message("hello", "chat")
        await until(lambda: server.objects(type="text", content="hello"))


@in_real_time
async def test_parameters_tell_of_the_call() -> None:
    """The fields of the call are filled in, in the URL too."""
    parameters = {"who": "{caller} calls {callee}", "deep": [{"tenant": "{header:x-tenant}"}], "n": 3}
    async with agent(listen) as server:
        url = server.url + "/{call_id}?from={caller}"
        async with call(configure(url, parameters=parameters), "agent:a"):
            await until(lambda: server.messages)
            first = json.loads(server.messages[0])
            assert first == {"who": "100 calls 200", "deep": [{"tenant": "acme"}], "n": 3}
            request = server.connections[0].request
            assert request is not None
            assert request.path == "/agent/5f2c9e0a1b7d?from=100"


def test_parameters_stay_what_they_are() -> None:
    """What is no field of a call is left alone, as are values that look like one."""
    fields = {"caller": "{callee}", "callee": "200", "call_id": "a"}
    assert fill_parameters("{caller} {nobody} {", fields, {}) == "{callee} {nobody} {"
    assert fill_parameters({"a": True, "b": "{header:X}"}, fields, {}) == {"a": True, "b": ""}


# ---------------------------------------------------------------- what the agent asks for


def says(*messages: dict[str, Any] | bytes) -> Callable[[Agent, ServerConnection], Coroutine[Any, Any, None]]:
    async def talk(server: Agent, connection: ServerConnection) -> None:
        for message in messages:
            await connection.send(message if isinstance(message, bytes) else json.dumps(message))
        await listen(server, connection)

    return talk


@in_real_time
async def test_wishes_are_granted() -> None:
    talk = says({"type": "text", "content": "hi"}, {"type": "dtmf", "digits": "1x#"}, {"type": "hangup"})
    async with agent(talk) as server, call(configure(server.url), "agent:a") as (line, _):
        await until(lambda: "hangup" in kinds(line))
        assert line.told[:-1] == [("message", "text", "hi"), ("dtmf", "1"), ("dtmf", "#")]
        assert line.told[-1][1].kind is EndKind.CHANNEL_CLOSED


@in_real_time
async def test_hangup_waits_for_the_goodbye() -> None:
    talk = says(audio.tone(AGENT_HZ, 0.5, 16000).tobytes(), {"type": "hangup"})
    async with agent(talk) as server, call(configure(server.url), "agent:a") as (line, _):
        await until(lambda: "hangup" in kinds(line))
        assert len([1 for _, frame in line.heard_frames if np.abs(frame).max() > 500]) >= 25


@in_real_time
async def test_wishes_that_are_not_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """One warning of each kind, with the call's id; the call goes on."""
    wishes = [{"type": "dtmf", "digits": "1"}, {"type": "hangup"}, {"type": "transfer", "to": "1"}]
    async with (
        agent(says(*wishes, *wishes, {"type": "text", "content": "done"})) as server,
        call(configure(server.url, allow=()), "agent:a") as (line, _),
    ):
        await until(lambda: line.told)
        assert line.told == [("message", "text", "done")]
        await until(lambda: len(server.objects(type="refused")) == 6)
        assert [wish["request"] for wish in server.objects(type="refused")[:3]] == [
            "dtmf",
            "hangup",
            "transfer",
        ]
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 3
    assert all("5f2c9e0a1b7d" in str(record.msg) for record in warnings)


@in_real_time
async def test_transfer_waits_for_what_was_said() -> None:
    """One that fails is told to the agent, which speaks on."""
    speech = audio.tone(AGENT_HZ, 0.5, 16000).tobytes()
    talk = says({"type": "hold"}, {"type": "unhold"}, speech, {"type": "transfer", "to": "200"})
    async with agent(talk) as server:
        config = configure(server.url, allow=("hold", "transfer"))
        line = Line()
        line.refusal = EndReason(EndKind.BUSY, "Busy Here", Party.CALLER, 486)
        async with call(config, "agent:a", line):
            await until(lambda: ("transfer", "200") in line.told)
            assert line.told == [("hold", True), ("hold", False), ("transfer", "200")]
            assert len([1 for _, frame in line.heard_frames if np.abs(frame).max() > 500]) >= 25
            await until(lambda: server.objects(type="refused", request="transfer"))
            (refused,) = server.objects(type="refused", request="transfer")
            assert refused["reason"] == "486 Busy Here"


# ---------------------------------------------------------------- connecting


async def fails(config: Config, target: str = "agent:a") -> str:
    line = Line()
    with pytest.raises(RtcError) as caught:
        async with call(config, target, line):
            pass
    assert caught.value.reason.kind is EndKind.CHANNEL_FAILED
    assert not line.is_attached
    assert line.told == []
    return caught.value.reason.detail


@in_real_time
async def test_nobody_there() -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    assert "cannot connect" in await fails(configure(url))
    assert url in await fails(Config(), url)


@in_real_time
async def test_refused() -> None:
    """By its HTTP status."""

    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(401, "no")

    async with agent(listen, process_request=refuse) as server:
        assert "refused the connection with 401" in await fails(configure(server.url))


@in_real_time
async def test_redirects_are_not_followed() -> None:
    async with agent(listen) as other:

        def redirect(connection: ServerConnection, request: Any) -> Any:
            response = connection.respond(302, "")
            response.headers["Location"] = other.url
            return response

        async with agent(listen, process_request=redirect) as server:
            assert "302" in await fails(configure(server.url, token="secret"))
        assert other.connections == []


@in_real_time
async def test_no_answer_in_time() -> None:
    """A server that accepts and says nothing, and a model that is never ready."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert "within 0.2 s" in await fails(configure(url, connect_timeout_s=0.2))
    for writer in writers:
        writer.close()
    server.close()
    async with agent(listen) as model:
        detail = await fails(configure(model.url, protocol="openai", connect_timeout_s=0.2))
        assert "within 0.2 s" in detail


@in_real_time
async def test_closed_without_an_answer() -> None:
    """What listens is on its way out: the system accepts for a program that is being killed."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert "closed the connection without an answer" in await fails(configure(url))
    server.close()


@in_real_time
async def test_answered_when_the_model_is_ready() -> None:
    events: list[str] = []

    async def talk(server: Agent, connection: ServerConnection) -> None:
        update = json.loads(await connection.recv())
        await asyncio.sleep(0.2)
        events.append("ready")
        await connection.send(json.dumps({"type": "session.updated", "session": update["session"]}))
        await listen(server, connection)

    async with agent(talk) as server, call(configure(server.url, protocol="openai"), "agent:a"):
        assert events == ["ready"]


@in_real_time
async def test_answered_at_once() -> None:
    """The agent is dialled while the telephone already hears; its failure ends the call."""
    async with agent(listen) as server:
        config = configure([f"ws://127.0.0.1:{free_port()}", server.url], answer="now")
        async with call(config, "agent:a") as (line, _):
            assert line.is_attached
            assert server.connections == []
            await until(lambda: server.messages)
            assert line.told == []
    async with call(configure(f"ws://127.0.0.1:{free_port()}", answer="now"), "agent:a") as (line, _):
        await until(lambda: line.told)
        assert kinds(line) == ["closed"]


@in_real_time
async def test_the_next_url_is_tried() -> None:
    async with agent(listen) as server:
        config = configure([f"ws://127.0.0.1:{free_port()}", server.url])
        async with call(config, "agent:a"):
            await until(lambda: server.messages)


@in_real_time
async def test_every_url_has_its_time() -> None:
    """A call waits for its agent until the last one could have been tried."""
    urls = [f"ws://127.0.0.1:{free_port()}" for _ in range(3)]
    context = make_context(FakeMedia(), configure(urls, connect_timeout_s=4))
    assert WebSocketConnection(Target.parse("agent:a"), context).join_s > 12
    assert WebSocketConnection(Target.parse(urls[0]), context).join_s == RtcConnection.join_s


@in_real_time
async def test_secrets_are_sent(caplog: pytest.LogCaptureFixture) -> None:
    """As headers, and nowhere else."""
    caplog.set_level("DEBUG")
    async with agent(listen) as server:
        config = configure(server.url, token="s3cret", headers={"X-Key": "k3y"})
        async with call(config, "agent:a"):
            request = server.connections[0].request
            assert request is not None
            assert request.headers["Authorization"] == "Bearer s3cret"
            assert request.headers["X-Key"] == "k3y"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("sipbridge")]
    assert not [line for line in ours if "s3cret" in line or "k3y" in line]
    assert "s3cret" not in repr(config)


@in_real_time
async def test_tls_is_verified(tmp_path: Path) -> None:
    """By the system's authorities, or the one that is configured; the name has to be right too."""
    authority = Authority(tmp_path)
    right, other = authority.issue("127.0.0.1"), authority.issue("elsewhere.example")
    ca = authority.certificate
    async with agent(listen, ssl=right.server_context()) as server:
        url = server.url.replace("ws:", "wss:")
        assert "certificate is not trusted" in await fails(configure(url))
        async with call(configure(url, ca=ca), "agent:a"):
            await until(lambda: server.messages)
    async with agent(listen, ssl=other.server_context()) as server:
        url = server.url.replace("ws:", "wss:")
        assert "certificate is not trusted" in await fails(configure(url, ca=ca))


@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 5, 8, 13, 21])
@in_real_time
async def test_close_while_connecting(rounds: int) -> None:
    """Nothing is left, and nothing told."""
    async with agent(listen) as server, call(configure(server.url), "agent:a", connect=False) as (line, link):
        joining = asyncio.ensure_future(join(link, line))
        for _ in range(rounds):
            await asyncio.sleep(0)
        await link.close(HUNG_UP)
        await joining
        await asyncio.sleep(0.05)
        assert not line.is_attached
        assert line.told == []
        assert all(connection.close_code is not None for connection in server.connections)


# ---------------------------------------------------------------- losing it


@in_real_time
async def test_it_is_reconnected(tmp_path: Path) -> None:
    """The same call, a new stream; meanwhile the telephone hears the prompt."""
    prompt = audio.write_wav(tmp_path / "wait.wav", audio.tone(300.0, 1.0))
    async with agent(echo) as server:
        line = Line()
        line.say(Tone(PHONE_HZ, 8000))
        config = configure(server.url, protocol="twilio", reconnect_prompt=prompt)
        async with call(config, "agent:a", line):
            await until_hears(line, PHONE_HZ)
            port = server.port
            await server.stop()
            await until_hears(line, 300.0)
            await server.start(port)
            await until_hears(line, PHONE_HZ)
            first, second = server.objects(event="start")
            assert first["start"]["callSid"] == second["start"]["callSid"]
            assert first["streamSid"] != second["streamSid"]
            assert line.told == []


@in_real_time
async def test_fails_over_and_then_ends() -> None:
    """The next URL when the first does not come back, the end when none does."""
    async with agent(echo) as second:
        line = Line()
        line.say(Tone(PHONE_HZ, 8000))
        async with agent(echo) as first:
            config = configure([first.url, second.url], reconnect_s=0.3)
            connection = call(config, "agent:a", line)
            await connection.__aenter__()
            await until_hears(line, PHONE_HZ)
        await until(lambda: second.messages)
        await until_hears(line, PHONE_HZ)
        await second.stop()
        await until(lambda: line.told)
        assert kinds(line) == ["closed"]
        assert line.told[0][1].kind is EndKind.CHANNEL_FAILED
        assert "cannot connect" in line.told[0][1].detail
        await connection.__aexit__(None, None, None)


@in_real_time
async def test_an_agent_that_closes_has_hung_up() -> None:
    """What it said before is heard; it is not called again."""

    async def talk(server: Agent, connection: ServerConnection) -> None:
        await connection.send(audio.tone(AGENT_HZ, 0.4, 16000).tobytes())

    async with agent(talk) as server, call(configure(server.url), "agent:a") as (line, _):
        await until(lambda: line.told)
        assert kinds(line) == ["closed"]
        assert line.told[0][1].kind is EndKind.CHANNEL_CLOSED
        assert len([1 for _, frame in line.heard_frames if np.abs(frame).max() > 500]) >= 20
        assert len(server.connections) == 1


@in_real_time
async def test_the_end_of_the_call_is_told() -> None:
    async with agent(listen) as server:
        async with call(configure(server.url, protocol="twilio"), "agent:a"):
            await until(lambda: server.objects(event="media"))
        await until(lambda: server.objects(event="stop"))
        await until(lambda: server.connections[0].close_code is not None)
        assert server.connections[0].close_code == 1000


# ---------------------------------------------------------------- what goes wrong


@in_real_time
async def test_broken_messages_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """Two in a row, again and again: one warning; the call goes on."""

    async def talk(server: Agent, connection: ServerConnection) -> None:
        for _ in range(5):
            await connection.send("{oh")
            await connection.send(bytes(MAX_MESSAGE_BYTES + 2))
            await connection.send('{"type":"sing"}')
        await connection.send('{"type":"text","content":"done"}')
        await listen(server, connection)

    async with agent(talk) as server, call(configure(server.url), "agent:a") as (line, _):
        await until(lambda: line.told)
        assert line.told == [("message", "text", "done")]
        assert not line.is_loud(50)
    warnings = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert all("5f2c9e0a1b7d" in warning for warning in warnings)


@pytest.mark.parametrize(
    "messages",
    [["{", "{", "{"], [bytes(MAX_MESSAGE_BYTES + 2)] * 3, [b"\0", "[]", b"\0"]],
    ids=["no JSON", "too long", "mixed"],
)
@in_real_time
async def test_three_broken_in_a_row_end_the_call(messages: list[str | bytes]) -> None:
    """With a protocol error, to both sides."""

    async def talk(server: Agent, connection: ServerConnection) -> None:
        await connection.recv()
        for message in messages:
            await connection.send(message)
        await listen(server, connection)

    async with agent(talk) as server, call(configure(server.url), "agent:a") as (line, _):
        await until(lambda: line.told)
        assert kinds(line) == ["closed"]
        assert line.told[0][1].kind is EndKind.CHANNEL_FAILED
        assert "protocol error" in line.told[0][1].detail
        await until(lambda: server.connections[0].close_code is not None)
        assert server.connections[0].close_code == 1002


@in_real_time
async def test_a_message_in_pieces() -> None:
    """In several frames of WebSocket; one that is too long in all is dropped."""

    async def talk(server: Agent, connection: ServerConnection) -> None:
        sound = audio.tone(AGENT_HZ, 1.0, 16000).tobytes()
        await connection.send([sound[:1000], sound[1000:1001], sound[1001:]])
        await connection.send([bytes(MAX_MESSAGE_BYTES), bytes(100)])
        await connection.send(['{"type":"text",', '"content":"done"}'])
        await listen(server, connection)

    async with agent(talk) as server, call(configure(server.url), "agent:a") as (line, _):
        await until_hears(line, AGENT_HZ)
        await until(lambda: line.told)
        assert line.told == [("message", "text", "done")]


@in_real_time
async def test_an_agent_that_is_far_ahead_is_not_read_from() -> None:
    """Nothing is lost: 20 s through a buffer of one; the agent has to wait."""
    sent = 0

    async def talk(server: Agent, connection: ServerConnection) -> None:
        nonlocal sent
        quiet = np.full(16000, 3, np.int16).tobytes()
        for _ in range(400):
            await connection.send(quiet)
            sent += 1
        await listen(server, connection)

    async with (
        agent(talk) as server,
        call(configure(server.url, max_buffer_s=1.0), "agent:a") as (line, link),
    ):
        assert isinstance(link, WebSocketConnection)
        await until(lambda: sent > 2)
        await asyncio.sleep(0.5)
        before = sent
        await asyncio.sleep(0.5)
        # the rest waits in the systems' sockets, and with the agent
        assert sent <= before + 2 < 390
        assert link._speech.queued_ms < 60_000
        heard = line.heard
        loud = heard[np.argmax(heard != 0) :]
        assert not audio.gaps_ms(loud, 8000)


@in_real_time
async def test_an_agent_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Little waits for it; it is given up, and called again."""
    monkeypatch.setattr(session_module, "STUCK_S", 0.3)
    go_on = asyncio.Event()

    async def talk(server: Agent, connection: ServerConnection) -> None:
        if len(server.connections) == 1:
            connection.transport.pause_reading()
            await go_on.wait()
        await listen(server, connection)

    line = Line(48000)
    async with agent(talk) as server:
        config = configure(server.url, sample_rate_hz=48000, frame_ms=10)
        async with call(config, "agent:a", line) as (_, link):
            assert isinstance(link, WebSocketConnection)
            session = link._session
            assert session is not None
            for _ in range(100):  # far faster than a telephone speaks
                for _ in range(100):
                    session.say(np.zeros(480, np.int16))
                await asyncio.sleep(0)
            await until(lambda: len(server.connections) == 2)
            await until(lambda: server.messages)
            assert line.told == []
            go_on.set()
    warnings = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert "does not read" in warnings[0]
    assert "has read nothing for 0.3 s" in warnings[1]


# ---------------------------------------------------------------- who speaks


@in_real_time
async def test_barge_in_of_our_own() -> None:
    """The caller speaks, and the agent's answer stops before the agent knows."""
    talk = says(audio.tone(AGENT_HZ, 20.0, 16000).tobytes())
    async with agent(talk) as server:
        line = Line()
        config = configure(server.url, vad=VadConfig(barge_in=True))
        async with call(config, "agent:a", line):
            await until_hears(line, AGENT_HZ)
            line.say(audio.speech(3.0))
            await until(lambda: line.clears)
            await asyncio.sleep(0.06)
            assert not line.is_loud(2)
            await until(lambda: server.objects(type="speech_started"))
            line.say(audio.silence(1.0))
            await until(lambda: server.objects(type="speech_stopped"))


@in_real_time
async def test_only_speech_is_sent() -> None:
    async with agent(listen) as server:
        line = Line()
        config = configure(server.url, vad=VadConfig(only_speech=True, stop_ms=200, pre_speech_ms=100))
        async with call(config, "agent:a", line):
            await asyncio.sleep(0.5)
            assert server.messages == []
            line.say(audio.speech(1.0))
            await until(lambda: server.objects(type="speech_stopped"), 15)
            came = len(server.messages)
            await asyncio.sleep(0.4)
            assert len(server.messages) == came
            frames = [np.frombuffer(item, np.int16) for item in server.messages if isinstance(item, bytes)]
            sound = np.concatenate(frames)
            assert 0.5 < len(sound) / 16000 < 2.0
            assert audio.level_dbfs(sound) > -40


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("agent:nobody", "there is no [[agent]] 'nobody'"),
        ("ws:", "is no URL of an agent"),
        ("ws://host#speech", "unknown protocol 'speech'"),
        ("ws://host#audiosocket", "is spoken over audiosocket://"),
        ("audiosocket://host:1#proxy", "is spoken over ws:// or wss://"),
    ],
)
@in_real_time
async def test_targets_that_make_no_sense(target: str, complaint: str) -> None:
    line = Line()
    try:
        with pytest.raises(RtcError) as caught:
            async with call(Config(), target, line):
                pass
        assert complaint in str(caught.value)
        assert target in str(caught.value)
    finally:
        line.stop()


@in_real_time
async def test_what_the_protocol_cannot_carry() -> None:
    assert "11025 Hz is not carried" in await fails(configure("ws://127.0.0.1:1", sample_rate_hz=11025))
    assert "its messages have 20 ms" in await fails(
        configure("ws://127.0.0.1:1", protocol="vonage", frame_ms=40)
    )


@pytest.mark.parametrize("method", ["start", "receive", "audio"])
@in_real_time
async def test_a_codec_that_fails(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of somebody else's: it ends its call, or nothing, and leaves nothing hanging."""

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr(ProxyProtocol, method, fail)
    async with agent(echo) as server:
        if method == "start":
            assert "internal error: oh no" in await fails(configure(server.url))
            return
        async with call(configure(server.url), "agent:a") as (line, _):
            await asyncio.sleep(0.3)
            assert kinds(line) == (["closed"] if method == "receive" else [])


def test_schemes() -> None:
    """All of them are this backend's."""
    from sipbridge.rtc.registry import load_backend

    for scheme in ("agent", "ws", "wss", "audiosocket"):
        assert load_backend(scheme) is WebSocketConnection
        assert Target.parse(f"{scheme}://x").scheme == scheme


def test_audiosocket_messages_are_of_one_form() -> None:
    assert format_message(0x10, b"\1\2") == b"\x10\x00\x02\1\2"
