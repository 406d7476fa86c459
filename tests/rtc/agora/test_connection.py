# SPDX-License-Identifier: GPL-3.0-or-later
"""A call in a channel, over the SDK and a simulated engine that keeps no time."""

import asyncio
import gc
import importlib.util
import json
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import SecretStr

from sipbridge.config import AgoraEncryptionConfig, Config, VadConfig
from sipbridge.errors import EndKind, EndReason, Party, RtcError
from sipbridge.rtc.agora import connection, sdk
from sipbridge.rtc.agora.connection import AgoraConnection
from sipbridge.rtc.agora.messages import MessageReader
from sipbridge.rtc.agora.service import Service, parameters_of
from tests.support import audio, fake_agora
from tests.support.agora_engine import Engine, FarUser, in_this_process
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, pass_time, settle, until
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import FakeCall, make_context

RATE_HZ = 16000
SALT = 43 * "A" + "="

# What a call has to have done for it, with the configuration that asks for it; what it can do without.
NEEDED: dict[str, dict[str, Any]] = {
    "agora_service_create": {},
    "agora_service_initialize": {},
    "agora_service_create_media_node_factory": {},
    "agora_service_get_agora_parameter": {},
    "agora_rtc_conn_create": {},
    "agora_rtc_conn_get_local_user": {},
    "agora_media_node_factory_create_audio_pcm_data_sender": {},
    "agora_service_create_custom_audio_track_pcm": {},
    "agora_service_create_direct_custom_audio_track_pcm": {"scenario": "ai-server"},
    "agora_rtc_conn_register_observer": {},
    "agora_rtc_conn_get_agora_parameter": {"parameters": {"che.x": 1}},
    "agora_parameter_set_parameters": {"parameters": {"che.x": 1}},
    "agora_local_user_register_audio_frame_observer": {},
    "agora_local_user_register_observer": {},
    "agora_local_user_set_playback_audio_frame_parameters": {},
    "agora_local_user_set_playback_audio_frame_before_mixing_parameters": {"receive": "users"},
    "agora_local_user_set_audio_volume_indication_parameters": {"volume_interval_ms": 100},
    "agora_rtc_conn_enable_encryption": {
        "encryption": AgoraEncryptionConfig(key=SecretStr("secret"), salt=SALT)
    },
    "agora_rtc_conn_connect": {},
    "agora_local_user_publish_audio": {},
}
HELPFUL: dict[str, dict[str, Any]] = {
    "agora_service_enable_extension": {},
    "agora_parameter_set_int": {},
    "agora_local_audio_track_set_enabled": {},
    "agora_local_audio_track_clear_sender_buffer": {},
    "agora_local_user_set_audio_scenario": {},
    "agora_local_user_set_audio_encoder_config": {},
    "agora_local_user_capabilities_observer_create": {"scenario": "ai-server"},
    "agora_local_user_register_capabilities_observer": {"scenario": "ai-server"},
    "agora_local_user_unregister_capabilities_observer": {"scenario": "ai-server"},
    "agora_rtc_conn_create_data_stream": {},
    "agora_audio_pcm_data_sender_send": {},
    "agora_rtc_conn_send_stream_message": {},
    "agora_rtc_conn_renew_token": {},
    "agora_local_user_send_audio_meta_data": {},
    "agora_local_user_unpublish_audio": {},
    "agora_local_user_unregister_observer": {},
    "agora_local_user_unregister_audio_frame_observer": {},
    "agora_rtc_conn_disconnect": {},
    "agora_rtc_conn_unregister_observer": {},
    "agora_service_release": {},
}


class Stage:
    """A media loop, an engine, and calls."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine = engine
        self.media = FakeMedia()
        self.context = make_context(self.media, config)
        self._calls = 0

    def call(self, target: str = "agora:room", rate_hz: int = RATE_HZ) -> FakeCall:
        self._calls += 1
        return FakeCall(self.media, self.context, target, f"call-{self._calls}", rate_hz)

    async def joined(self, target: str = "agora:room", rate_hz: int = RATE_HZ) -> FakeCall:
        call = self.call(target, rate_hz)
        await call.connect()
        return call

    async def until(self, happened: Callable[[], object]) -> None:
        """Lets the engine's threads, the event loop and the media go on until something has happened."""
        deadline = time.monotonic() + 10
        while not happened():
            assert time.monotonic() < deadline, f"it did not happen: {self.engine.log()}"
            await settle()
            self.media.run(2)
            time.sleep(0.001)

    async def told(self, call: FakeCall, *first: Any) -> tuple[Any, ...]:
        """What a call is told that begins with this; waits for it."""
        await self.until(lambda: any(told[: len(first)] == first for told in call.told))
        return next(told for told in call.told if told[: len(first)] == first)

    async def hang_up(self, call: FakeCall) -> None:
        await call.close()
        await self.until(lambda: not connection._leaving)


@asynccontextmanager
async def stage(**config: Any) -> AsyncIterator[Stage]:
    """At its end nothing may be left, whatever the test did."""
    with in_this_process() as engine:
        engine.set(turbo=1, delay=0)
        on_stage = Stage(engine, fake_agora.config(**config))
        try:
            yield on_stage
            await on_stage.until(lambda: not connection._leaving)
        finally:
            await AgoraConnection.shut_down()
        stats = engine.stats()
        names = ("connections", "tracks", "senders", "stale", "inside")
        assert {stats[name] for name in names} == {0}, engine.log()


def answers(engine: Engine, topic: str) -> list[dict[str, str]]:
    """What the channel was told by messages of this topic, in order."""
    said = [bytes.fromhex(words[1]) for words in engine.log("message")]
    told = [json.loads(data) for data in said if data.startswith(b"{")]
    return [message for message in told if message.pop("topic") == topic]


async def wait_answers(on: Stage, topic: str, count: int) -> list[dict[str, str]]:
    """Without a tick of the media: what these answer to is for the test to let happen."""
    deadline = time.monotonic() + 10
    while len(found := answers(on.engine, topic)) < count:
        assert time.monotonic() < deadline, on.engine.log()
        await pass_time(0.02)
        time.sleep(0.001)
    return found


async def fails(on: Stage, target: str = "agora:room") -> EndReason:
    call = on.call(target)
    with pytest.raises(RtcError) as caught:
        await call.connect()
    assert call.told == []
    await on.hang_up(call)
    return caught.value.reason


# ---------------------------------------------------------------- joining and leaving


@in_event_loop
async def test_what_the_sdk_is_told() -> None:
    """The service once, each connection what is configured, and a token for its channel and user."""
    encryption = AgoraEncryptionConfig(key=SecretStr("secret"), salt=SALT)
    async with stage(
        area=("eu", "na"),
        scenario="meeting",
        audio_profile="music",
        user_id="{caller}",
        parameters={"che.x": 1},
        local_access_points=("192.0.2.1",),
        local_domain="rtc.example.com",
        encryption=encryption,
    ) as on:
        call = await on.joined("agora:sales")
        log = on.engine.log()
        (service,) = on.engine.log("service")
        assert service[:2] == [fake_agora.APP_ID, "area=6"]
        assert {"scenario=8", "profile=1", "log_kb=2048"} < set(service)
        assert ["scenario", "8"] in log
        assert ["profile", "2"] in log
        assert on.engine.log("encryption") == [[f"8:secret:{32 * '00'}"]]
        told = [json.loads(" ".join(words)) for words in on.engine.log("parameters")]
        assert {"che.x": 1} in told
        assert {"rtc.local_ap_list": ["192.0.2.1"]} in told
        assert {"rtc.local_domain": "rtc.example.com"} in told
        ((channel, user_id, token),) = on.engine.log("connect")
        assert (channel, user_id, token[:3]) == ("sales", "100", "007")
        await on.hang_up(call)
        on.engine.wait_log("disconnect")
        other = await on.joined()
        assert len(on.engine.log("create")) == len(on.engine.log("service")) == 1
        await on.hang_up(other)


def test_parameters_of_proxies_and_private_deployments() -> None:
    config = fake_agora.config(local_access_points=("a", "b"), local_edges=("c",), proxy=True).agora
    assert config is not None
    assert parameters_of(config) == {
        "rtc.force_local": True,
        "rtc.local_ap_list": ["a", "b"],
        "rtc.vos_list": ["c"],
        "rtc.enable_proxy": True,
        "rtc.local_ap_low_level": True,
    }
    config = fake_agora.config(local_access_points=("a",), local_domain="d").agora
    assert config is not None
    assert parameters_of(config) == {
        "rtc.force_local": True,
        "rtc.local_ap_list": ["a"],
        "rtc.enable_nasa2": False,
        "rtc.local_domain": "d",
    }


@in_event_loop
async def test_who_is_there() -> None:
    """Whoever was there before, comes and goes."""
    async with stage() as on:
        on.engine.join("room", "7")
        call = await on.joined()
        await on.told(call, "joined", "7")
        bob = on.engine.join("room", "8")
        await on.told(call, "joined", "8")
        bob.leave()
        assert await on.told(call, "left") == ("left", "8", 1)
        other = await on.joined("agora:other")
        await on.hang_up(other)
        assert len(call.told) == 3
        await on.hang_up(call)


@pytest.mark.parametrize(
    ("code", "kind", "sip_code", "words"),
    [
        (3, EndKind.FORBIDDEN, 403, "banned"),
        (4, EndKind.CHANNEL_FAILED, 502, "could not be joined"),
        (6, EndKind.CHANNEL_FAILED, 502, "app id"),
        (7, EndKind.NOT_FOUND, 404, "name"),
        (8, EndKind.CHANNEL_FAILED, 502, "token is not valid"),
        (9, EndKind.CHANNEL_FAILED, 502, "token has expired"),
        (14, EndKind.UNAVAILABLE, 504, "not been heard"),
        (99, EndKind.CHANNEL_FAILED, 502, "reason 99"),
    ],
)
@in_event_loop
async def test_channel_that_refuses(code: int, kind: EndKind, sip_code: int, words: str) -> None:
    """Each code has words for people and a code for the caller. The next call may well be let in."""
    async with stage() as on:
        on.engine.ask("refuse", "room", code)
        reason = await fails(on)
        assert (reason.kind, reason.code) == (kind, sip_code)
        assert words in reason.detail
        on.engine.ask("refuse", "room", 0)
        await on.hang_up(await on.joined())


@in_event_loop
async def test_channel_that_never_answers() -> None:
    async with stage(connect_timeout_s=4) as on:
        on.engine.ask("refuse", "room", -1)
        call = on.call()
        connecting = asyncio.ensure_future(call.connect())
        await on.until(lambda: on.engine.log("connect"))
        await pass_time(5)
        with pytest.raises(RtcError) as caught:
            await connecting
        assert caught.value.reason.code == 504
        await on.hang_up(call)


@in_event_loop
async def test_user_id_that_is_none() -> None:
    async with stage(user_id="{header:X-User}") as on:
        assert "no number of 32 bits, and string_user_ids is false" in (await fails(on)).detail
    async with stage(user_id="anna {caller}", string_user_ids=True) as on:
        call = await on.joined()
        assert on.engine.log("connect")[0][1:3] == ["anna", "100"]
        await on.hang_up(call)


@in_event_loop
async def test_ends_of_a_channel() -> None:
    """The server ends it: the call is told once, why."""
    async with stage() as on:
        call = await on.joined()
        on.engine.ask("kick", "room", 19)
        _, reason = await on.told(call, "closed")
        assert (reason.kind, reason.code) == (EndKind.CHANNEL_CLOSED, 480)
        assert "user id of this call" in reason.detail
        on.engine.ask("kick", "room", 3)
        await on.hang_up(call)
        assert [told[0] for told in call.told] == ["closed"]


@in_event_loop
async def test_channel_that_is_lost_and_found() -> None:
    async with stage(reconnect_s=30) as on:
        call = await on.joined()
        on.engine.ask("drop", "room", 50)
        await on.told(call, "noticed", "reconnecting")
        await on.told(call, "noticed", "reconnected")
        on.engine.wait_log("cleared")  # of what the telephone said meanwhile
        await pass_time(60)
        assert "closed" not in [told[0] for told in call.told]
        await on.hang_up(call)


@in_event_loop
async def test_channel_that_stays_lost() -> None:
    async with stage(reconnect_s=30) as on:
        call = await on.joined()
        on.engine.ask("drop", "room", -50)
        await on.told(call, "noticed", "reconnecting")
        await pass_time(29)
        assert "closed" not in [told[0] for told in call.told]
        await pass_time(2)
        _, reason = await on.told(call, "closed")
        assert "did not come back within 30 s" in reason.detail
        await on.hang_up(call)


@in_event_loop
async def test_channel_that_refuses_to_be_found_again() -> None:
    async with stage() as on:
        call = await on.joined()
        on.engine.ask("drop", "room", 20, 3)
        _, reason = await on.told(call, "closed")
        assert reason.kind is EndKind.FORBIDDEN
        await on.hang_up(call)


# ---------------------------------------------------------------- tokens and keys


@in_event_loop
async def test_token_is_renewed() -> None:
    async with stage() as on:
        call = await on.joined()
        ((_, _, first),) = on.engine.log("connect")
        on.engine.ask("expire", "room", 5000)
        await on.until(lambda: on.engine.log("renew"))
        ((second,),) = on.engine.log("renew")
        assert second.startswith("007")
        assert second != first
        assert call.told == []
        await on.hang_up(call)


@in_event_loop
async def test_token_that_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more when it is too late; then the call ends for that reason."""
    async with stage() as on:
        call = await on.joined()
        on.engine.fail("agora_rtc_conn_renew_token", -110, -1)
        on.engine.ask("expire", "room", 30)
        _, reason = await on.told(call, "closed")
        assert "the token has expired, and cannot be renewed" in reason.detail
        assert "the token is not valid" in reason.detail
        await on.hang_up(call)


@in_event_loop
async def test_token_that_is_renewed_too_late() -> None:
    async with stage() as on:
        call = await on.joined()
        on.engine.fail("agora_rtc_conn_renew_token", -1, 1)
        on.engine.ask("expire", "room", 30)
        await on.until(lambda: on.engine.log("renew"))
        assert call.told == []
        await on.hang_up(call)


@in_event_loop
async def test_wrong_key() -> None:
    """With the right one both hear each other; with a wrong one the call ends, and says why."""
    async with stage(encryption=AgoraEncryptionConfig(mode="aes-128-xts", key=SecretStr("right"))) as on:
        ann = on.engine.join("room", "7")
        ann.use_key(1, "right")
        call = await on.joined()
        await on.told(call, "joined")
        ann.burst(audio.tone(500, 0.5, RATE_HZ))
        await on.until(lambda: call.phone.heard.any())
        ann.use_key(1, "wrong")
        ann.burst(audio.tone(500, 0.5, RATE_HZ))
        _, reason = await on.told(call, "closed")
        assert "cannot be decrypted" in reason.detail
        assert reason.code == 488
        await on.hang_up(call)


# ---------------------------------------------------------------- messages and events


@in_event_loop
async def test_messages_both_ways() -> None:
    """In their order, long ones in parts."""
    async with stage() as on:
        ann = on.engine.join("room", "7")
        call = await on.joined()
        await call.connection.send_message("hello")
        await call.connection.send_message("1", "topic")
        await call.connection.send_dtmf("5", 100)
        await call.connection.send_message(b"\0" * 10)
        await call.connection.send_message("meta", "audio-metadata")
        await call.connection.send_message(65 * "x", "audio-metadata")
        await call.connection.send_message(2000 * "long", "topic")
        await call.connection.send_message("short")
        while len(on.engine.log("message")) < 4 + 12 + 1:
            await pass_time(0.02)
        said = [bytes.fromhex(words[1]) for words in on.engine.log("message")]
        reader = MessageReader()
        assert [reader.read("5", packet) for packet in said[4:]] == [
            *[None] * 11,
            ("topic", 2000 * "long"),
            ("", "short"),
        ]
        assert said[0] == b"hello"
        assert json.loads(said[1]) == {"topic": "topic", "message": "1"}
        assert json.loads(said[2]) == {"topic": "dtmf", "message": "5"}
        assert said[3].endswith(b"|1|1|AAAAAAAAAAAAAA==")
        assert [bytes.fromhex(words[1]) for words in on.engine.wait_log("metadata")] == [b"meta"]
        ann.tell(b'{"topic": "dtmf", "message": "1a*x"}')
        ann.tell(b"hi")
        ann.tell_metadata(b"pitch")
        ann.tell(b'{"topic": "hangup", "message": ""}')
        await on.told(call, "hangup")
        told = [told for told in call.told if told[0] != "joined"]
        assert told[:3] == [("dtmf", "1"), ("dtmf", "A"), ("dtmf", "*")]
        assert told[3] == ("message", "", "hi")
        assert told[4] == ("noticed", "audio-metadata", "7", {"text": "pitch"})
        await on.hang_up(call)


@in_event_loop
async def test_channel_may_not_do_what_is_not_allowed() -> None:
    async with stage(allow=()) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined()
        ann.tell(b'{"topic": "dtmf", "message": "1"}')
        ann.tell(b'{"topic": "hangup", "message": ""}')
        await on.told(call, "message", "hangup")
        assert ("message", "dtmf", "1") in call.told
        await on.hang_up(call)


@in_event_loop
async def test_channel_asks_for_what_the_telephone_does() -> None:
    """It is told how that went, by an answer that nobody takes for a wish."""
    async with stage(allow=("hold", "transfer")) as on:
        ann = on.engine.join("room", "7")
        call, other = await on.joined(), await on.joined("agora:other")
        await on.told(call, "joined")
        call.told.clear()
        for topic, text in (("hold", "on"), ("hold", "off"), ("hold", ""), ("transfer", "sip:200@pbx")):
            ann.tell(json.dumps({"topic": topic, "message": text}).encode())
        assert await wait_answers(on, "hold", 3) == [
            {"message": text, "state": "done"} for text in ("on", "off", "")
        ]
        assert await wait_answers(on, "transfer", 1) == [{"message": "sip:200@pbx", "state": "done"}]
        assert call.told == [("hold", True), ("hold", False), ("hold", True), ("transfer", "sip:200@pbx")]
        call.refusal = EndReason(EndKind.BUSY, "Busy Here", Party.CALLER, 486)
        ann.tell(b'{"topic": "transfer", "message": "200"}')
        (_, answer) = await wait_answers(on, "transfer", 2)
        assert answer == {"message": "200", "state": "failed", "reason": "486 Busy Here"}
        ann.tell(b'{"topic": "transfer", "message": ""}')
        ann.tell(b'{"topic": "hold", "message": "perhaps"}')
        ann.tell(b'{"topic": "play", "message": "ding.wav"}')
        assert "expected a number" in (await wait_answers(on, "transfer", 3))[-1]["reason"]
        assert "expected on or off" in (await wait_answers(on, "hold", 4))[-1]["reason"]
        assert (await wait_answers(on, "play", 1))[0]["reason"] == "play is not allowed here"
        assert other.told == []
        await on.hang_up(call)
        await on.hang_up(other)


@in_event_loop
async def test_answers_are_no_wishes() -> None:
    """Two calls in one channel: what is told to the one who asked does not make the other ask again."""
    async with stage(allow=("hold",)) as on:
        ann = on.engine.join("room", "7")
        call, other = await on.joined(), await on.joined()
        await on.told(other, "joined", "7")
        ann.tell(b'{"topic": "hold", "message": "on"}')
        ann.tell(b'{"topic": "mark", "message": "a"}')
        await wait_answers(on, "hold", 2)
        await wait_answers(on, "mark", 2)
        for _ in range(20):
            await pass_time(0.02)
            on.media.run(2)
        assert (len(answers(on.engine, "hold")), len(answers(on.engine, "mark"))) == (2, 2)
        for one in call, other:
            assert [told for told in one.told if told[0] == "hold"] == [("hold", True)]
            await on.hang_up(one)


@pytest.mark.parametrize("receive", ["mix", "users"])
@in_event_loop
async def test_channel_has_a_sound_played(tmp_path: Path, receive: str) -> None:
    audio.write_wav(tmp_path / "ding.wav", audio.tone(900, 1.0))
    async with stage(allow=("play",), sounds=tmp_path, receive=receive) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined(rate_hz=8000)
        on.media.run(8)
        for name in ("ding.wav", "../ding.wav", "", "..", "nothing.wav"):
            ann.tell(json.dumps({"topic": "play", "message": name}).encode())
        told = await wait_answers(on, "play", 5)
        assert [answer["state"] for answer in told] == ["done", *["failed"] * 4]
        on.media.run(8)
        call.phone.forget()
        on.media.run_s(0.3)
        assert audio.find_tone(call.phone.heard, 8000) == pytest.approx(900, abs=3)
        await on.hang_up(call)


@pytest.mark.parametrize(("receive", "rate_hz"), [("mix", 16000), ("mix", 8000), ("users", 16000)])
@in_event_loop
async def test_channel_is_told_what_has_been_heard(receive: str, rate_hz: int) -> None:
    """Once it has been, and not when it came."""
    async with stage(receive=receive) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined(rate_hz=rate_hz)
        await on.told(call, "joined")
        on.media.run(8)
        call.phone.forget()
        ann.burst(audio.tone(500, 1.0, RATE_HZ))
        await until(lambda: not on.engine.stats()["busy"])
        await settle()
        ann.tell(b'{"topic": "mark", "message": "greeting"}')
        await until(lambda: not on.engine.stats()["busy"])
        await settle()
        on.media.run_s(0.9)
        await pass_time(0.1)
        assert answers(on.engine, "mark") == []
        on.media.run_s(0.2)
        assert await wait_answers(on, "mark", 1) == [{"message": "greeting", "state": "played"}]
        assert len(np.trim_zeros(call.phone.heard)) > 0.99 * rate_hz
        assert audio.find_tone(call.phone.heard[1000:7000], rate_hz) == pytest.approx(500, abs=3)
        await on.hang_up(call)


@pytest.mark.parametrize(("receive", "rate_hz"), [("mix", 16000), ("mix", 8000), ("users", 16000)])
@in_event_loop
async def test_channel_drops_what_has_not_been_heard(receive: str, rate_hz: int) -> None:
    async with stage(receive=receive) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined(rate_hz=rate_hz)
        await on.told(call, "joined")
        ann.burst(audio.tone(500, 5.0, RATE_HZ))
        await until(lambda: not on.engine.stats()["busy"])
        ann.tell(b'{"topic": "mark", "message": "a"}')
        on.media.run_s(0.2)
        assert call.phone.heard.any()
        ann.tell(b'{"topic": "clear", "message": ""}')
        assert await wait_answers(on, "mark", 1) == [{"message": "a", "state": "cleared"}]
        assert call.phone.clears == 1
        call.phone.forget()
        on.media.run_s(0.2)
        assert not call.phone.heard[800:].any()
        await on.hang_up(call)


@in_event_loop
async def test_messages_that_come_too_fast() -> None:
    """They are dropped, not kept without end."""
    async with stage() as on:
        call = await on.joined()
        for _ in range(3000):
            await call.connection.send_message("x")
        assert isinstance(call.connection, AgoraConnection)
        assert len(call.connection._packets) <= 2000
        await on.hang_up(call)


@in_event_loop
async def test_volumes_are_told() -> None:
    async with stage(volume_interval_ms=100) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined()
        ann.burst(audio.tone(500, 1.0, RATE_HZ))
        told = await on.told(call, "noticed", "volume")
        assert 20 < told[3]["7"] < 256
        await on.hang_up(call)


@pytest.mark.parametrize("receive", ["mix", "users"])
@in_event_loop
async def test_speech_is_told_and_interrupts(receive: str) -> None:
    """The telephone begins to speak: what it would have heard is dropped, and all know."""
    async with stage(vad=VadConfig(barge_in=True), receive=receive) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined()
        await on.told(call, "joined")
        ann.burst(audio.tone(500, 20.0, RATE_HZ))
        await on.until(lambda: call.phone.heard.any() and not on.engine.stats()["busy"])
        call.phone.say(audio.speech(1.5, RATE_HZ))
        told = await on.told(call, "noticed", "speech")
        assert told[3] == {"state": "start"}
        assert call.phone.clears == 1
        call.phone.forget()
        on.media.run_s(0.1)
        assert not call.phone.heard[-800:].any()
        call.phone.say(np.zeros(0, np.int16))
        on.media.run_s(2.0)
        await on.told(call, "noticed", "speech", "", {"state": "stop"})
        await on.hang_up(call)


@in_event_loop
async def test_voices_of_all_are_told() -> None:
    """Each user's as an event with that identity; the telephone's to the channel as well."""
    async with stage(vad=VadConfig(stop_ms=700), receive="users") as on:
        ann, bob = on.engine.join("room", "7"), on.engine.join("room", "8")
        call = await on.joined()
        await on.told(call, "joined", "8")

        async def hear(far: FarUser, samples: Samples) -> None:
            """In pieces of 100 ms, at the pace of the media."""
            for start in range(0, len(samples), RATE_HZ // 10):
                far.burst(samples[start : start + RATE_HZ // 10])
                await until(lambda: not on.engine.stats()["busy"])
                on.media.run_s(0.1)

        def states(user_id: str) -> list[str]:
            told = [told for told in call.told if told[:3] == ("noticed", "speech", user_id)]
            return [told[3]["state"] for told in told]

        await hear(ann, np.zeros(RATE_HZ, np.int16))
        await hear(bob, audio.speech(2.5, RATE_HZ))
        await on.until(lambda: "stop" in states("8"))
        assert states("8")[0] == "start"
        assert "speaking" in states("8")
        await hear(bob, audio.speech(0.5, RATE_HZ))
        await on.until(lambda: states("8")[-1] == "start")
        bob.leave()
        await on.told(call, "left", "8")
        assert states("8")[-1] == "stop"
        assert states("7") == states("") == []
        call.phone.say(audio.speech(2.5, RATE_HZ))
        await on.until(lambda: "stop" in states(""))
        assert states("")[:2] == ["start", "speaking"]
        await on.until(lambda: answers(on.engine, "speech")[-1:] == [{"message": "stop"}])
        assert [message["message"] for message in answers(on.engine, "speech")] == states("")
        await on.hang_up(call)


@in_event_loop
async def test_only_speech_is_sent() -> None:
    async with stage(vad=VadConfig(only_speech=True)) as on:
        ann = on.engine.join("room", "7")
        call = await on.joined()
        ann.record()
        call.phone.say(audio.tone(700, 1.0, RATE_HZ, -60))
        on.media.run_s(1.0)
        await settle()
        assert not len(ann.heard)
        call.phone.say(audio.speech(1.5, RATE_HZ))
        on.media.run_s(1.5)
        await on.until(lambda: len(ann.heard))
        await on.hang_up(call)


# ---------------------------------------------------------------- what goes wrong


async def use(on: Stage, call: FakeCall) -> None:
    """All that a call does with the SDK once it has joined."""
    call.phone.say(audio.tone(700, 1.0, RATE_HZ))
    on.media.run_s(0.5)
    await call.connection.send_message("x")
    await call.connection.send_message("x", "audio-metadata")
    on.engine.ask("expire", "room", 5000)
    on.engine.ask("drop", "room", 20)
    await on.told(call, "noticed", "reconnected")
    for _ in range(10):
        await settle()
        time.sleep(0.001)


@pytest.mark.parametrize("function", NEEDED)
@in_event_loop
async def test_function_that_fails(function: str) -> None:
    """The call is told, nothing is left, and the next one joins."""
    async with stage(**NEEDED[function]) as on:
        on.engine.fail(function, -1, -1)
        reason = await fails(on)
        assert reason.detail.startswith("Agora: ")
        on.engine.fail(function, 0, 0)
        await on.hang_up(await on.joined())


@pytest.mark.parametrize("function", HELPFUL)
@in_event_loop
async def test_function_that_a_call_can_do_without(function: str) -> None:
    """The call goes on, and ends well."""
    async with stage(**HELPFUL[function]) as on:
        on.engine.fail(function, -1, -1)
        call = await on.joined()
        await use(on, call)
        assert [told[1] for told in call.told] == ["reconnecting", "reconnected"]
        await on.hang_up(call)


@in_event_loop
async def test_no_other_function_is_called() -> None:
    """So each of those that can fail does so in one of the two tests above."""
    called: set[str] = set()
    every: dict[str, Any] = {}
    for changes in (*NEEDED.values(), *HELPFUL.values()):
        every |= changes
    for changes in ({}, every):
        async with stage(**changes) as on:
            call = await on.joined()
            await use(on, call)
            await on.hang_up(call)
            engine = on.engine
            await AgoraConnection.shut_down()
            called |= set(engine.ask("called").split())
    assert called == {*NEEDED, *HELPFUL}


@in_event_loop
async def test_sdk_that_takes_no_audio() -> None:
    """For a second; then the call ends."""
    async with stage() as on:
        call = await on.joined()
        on.engine.fail("agora_audio_pcm_data_sender_send", -1, -1)
        on.media.run_s(1.2)
        _, reason = await on.told(call, "closed")
        assert "push_audio_pcm_data" in reason.detail
        await on.hang_up(call)


@pytest.mark.parametrize("receive", ["mix", "users"])
@in_event_loop
async def test_callbacks_after_hang_up(receive: str) -> None:
    """Whatever comes late is for nobody, and the next call with this connection is not told either."""
    async with stage(receive=receive) as on:
        on.engine.set(late=1)
        first = await on.joined()
        await on.hang_up(first)
        told = list(first.told)
        second = await on.joined()
        for _ in range(30):
            await settle()
            on.media.run(1)
            time.sleep(0.001)
        assert first.told == told
        assert "closed" not in [told[0] for told in second.told]
        await on.hang_up(second)


@in_event_loop
async def test_frames_of_others_that_are_not_known_are_dropped() -> None:
    """Between a user's first frame and the port for it."""
    async with stage(receive="users") as on:
        call = await on.joined()
        assert isinstance(call.connection, AgoraConnection)
        call.connection.hear("nobody", np.zeros(160, np.int16))
        await on.hang_up(call)
        call.connection.hear("nobody", np.zeros(160, np.int16))


@in_event_loop
async def test_audio_that_was_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Of another rate, or of two channels: it would be noise. It is said once, not for each frame."""
    async with stage() as on:
        call = await on.joined()
        assert isinstance(call.connection, AgoraConnection)
        assert call.connection._link is not None
        for rate_hz, channels in ((48000, 1), (16000, 2)):
            frame = SimpleNamespace(samples_per_sec=rate_hz, channels=channels, buffer=bytearray(1280))
            call.connection._link.hear("", frame)
        (warning,) = [message for message in caplog.messages if "not heard" in message]
        assert "48000 Hz and 1 channels" in warning
        on.media.run_s(0.1)
        assert not call.phone.heard.any()
        await on.hang_up(call)


@in_event_loop
async def test_agents_that_are_too_old() -> None:
    """The SDK asks for another scenario, and gets it."""
    async with stage(scenario="ai-server") as on:
        on.engine.set(no_aiqos=1)
        call = await on.joined()
        on.engine.wait_log("scenario", 2)
        assert on.engine.log("scenario")[-1] == ["3"]
        await on.hang_up(call)


@in_event_loop
async def test_process_ends_while_calls_are_up() -> None:
    """Connections are released, then the service."""
    async with stage() as on:
        for _ in range(3):
            await on.joined()
        config = on.context.config.agora
        assert config is not None
        service = Service.get(config)
        await AgoraConnection.shut_down()
        log = on.engine.log()
        assert log[-4:] == [["destroy"], ["destroy"], ["destroy"], ["service", "released"]]
        with pytest.raises(RtcError, match="closed"):
            await service.run(print)


@in_event_loop
async def test_call_that_outlives_the_service() -> None:
    """It ends as others do, and does nothing to what has been released."""
    async with stage() as on:
        call = await on.joined()
        await AgoraConnection.shut_down()
        await call.connection.send_message("too late")
        await call.connection.send_message("too late", "audio-metadata")
        on.media.run_s(0.1)
        await settle()
        await on.hang_up(call)
        assert on.engine.log()[-1] == ["service", "released"]


# ---------------------------------------------------------------- many calls


@in_event_loop
async def test_five_hundred_calls_over_a_pool_of_ten() -> None:
    """Ten at a time: no more connections are made than that, and memory does not grow."""
    async with stage(pool_size=10) as on:
        memory = psutil.Process().memory_info
        sizes = []
        for _ in range(50):
            calls = await asyncio.gather(*(on.joined(rate_hz=8000) for _ in range(10)))
            on.media.run(8)
            for call in calls:
                await call.close()
            await on.until(lambda: not connection._leaving)
            for call in calls:
                on.media.bank.remove(call.phone)
            gc.collect()
            sizes.append(memory().rss)
        stats = on.engine.stats()
        assert (stats["created"] - stats["connections"], stats["connections"], stats["joined"]) == (
            stats["created"] - 10,
            10,
            0,
        )
        assert len(on.engine.log("create")) == 10
        assert len(on.engine.log("connect")) == 500
        assert sizes[-1] - sizes[10] < 4 << 20, sizes


@in_event_loop
async def test_pool_that_is_full() -> None:
    """What is too much is released."""
    async with stage(pool_size=1) as on:
        calls = [await on.joined() for _ in range(3)]
        for call in calls:
            await on.hang_up(call)
        assert on.engine.stats()["connections"] == 1


# ---------------------------------------------------------------- the SDK itself


def test_sdk_changes_nothing_of_the_process(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its import switches off the checking of certificates, and it prints; neither comes through.

    What it has to say is in our log, without its line for each frame.
    """
    with in_this_process(), caplog.at_level(logging.DEBUG, "sipbridge"):
        for name in [name for name in sys.modules if name.partition(".")[0] == "agora"]:
            del sys.modules[name]
        sdk.load.cache_clear()
        before = ssl._create_default_https_context
        names = sdk.load()
        assert ssl._create_default_https_context is before
        sys.modules["agora.rtc.rtc_connection"].print("hello")
        assert "hello" not in capsys.readouterr().out
        assert "the SDK says: hello" in caplog.messages
        logging.getLogger("agora.rtc.local_user").warning("a warning")
        logging.getLogger("agora.rtc.local_user").debug("a frame")
        assert "a warning" in caplog.messages
        assert "a frame" not in caplog.messages
        assert names.AgoraService


@in_event_loop
async def test_sdk_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk.load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    context = make_context(FakeMedia(), fake_agora.config())
    call = FakeCall(FakeMedia(), context, "agora:room", "call")
    with pytest.raises(RtcError, match=r"pip install 'sipbridge\[agora\]'"):
        await call.connect()
    await call.close()
    await AgoraConnection.shut_down()


@in_event_loop
async def test_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It is not fetched behind anybody's back."""
    sdk.load.cache_clear()
    (tmp_path / "agora" / "rtc").mkdir(parents=True)
    init = tmp_path / "agora" / "__init__.py"
    init.write_text("raise AssertionError")
    spec = importlib.util.spec_from_file_location("agora", init)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    call = FakeCall(FakeMedia(), make_context(FakeMedia(), fake_agora.config()), "agora:room", "call")
    with pytest.raises(RtcError, match=r"native library is not in .* python -c 'import agora' fetches it"):
        await call.connect()
    await call.close()
    await AgoraConnection.shut_down()
