# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is let in, and what the others are told."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer, RunSipp
from tests.support import audio, setup
from tests.support.ports import free_port
from tests.support.sdp import describe
from tests.support.server import Server
from tests.support.sip_agent import Message, RefusedError, SipAgent, digest

STRANGER = "127.0.0.66"
LINE_ONLY: dict[str, Any] = {
    "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
    "rule": [{"name": "tone", "target": "tone:1000"}],
}


@pytest.fixture(scope="module")
def silent_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It knows one address, and says nothing to others."""
    with Server(tmp_path_factory.mktemp("silent"), LINE_ONLY) as server:
        yield server


@pytest.fixture(scope="module")
def refusing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It tells strangers that they are."""
    with Server(tmp_path_factory.mktemp("refusing"), {**LINE_ONLY, "sip": {"unknown": "403"}}) as server:
        yield server


@pytest.fixture(scope="module")
def digest_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has users, and is the one that gets wrong passwords."""
    config = {
        "sip": {"digest": ["MD5", "SHA-256"]},
        "trunk": [
            {"name": "line", "allowed_addresses": ["127.0.0.1"]},
            {"name": "roaming", "auth": setup.user(setup.SECURE_USER)},
            {"name": "alice", "kind": "phone", "auth": setup.user(setup.ALICE)},
        ],
        "rule": [{"name": "tone", "target": "tone:1000"}],
    }
    with Server(tmp_path_factory.mktemp("digest"), config) as server:
        yield server


def test_the_default_lets_loopback_in_and_nobody_else(tmp_path: Path, rtp: MakePeer) -> None:
    """With no trunk and no rule configured, callers on this machine meet in rooms."""
    with (
        Server(tmp_path / "default") as server,
        SipAgent(server.sip_address, user="a") as a,
        SipAgent(server.sip_address, host="127.0.0.9", user="b") as b,
    ):
        first, second = rtp(), rtp(host="127.0.0.9")
        first.play(audio.tone(1000, 1.0), loop=True)
        calls = [a.call("demo", first), b.call("demo", second)]
        second.listen(0.5)
        assert audio.find_tone(second.listen(0.5), 8000) == audio.near(1000)
        for dialog in calls:
            dialog.hang_up()


def test_stranger_hears_nothing(silent_server: Server, sipp: RunSipp) -> None:
    """INVITE, OPTIONS, REGISTER, BYE and what is no method: no answer, and no call."""
    sipp("uac_stranger_silence", remote=silent_server.sip_address, host=STRANGER).wait()
    with SipAgent(silent_server.sip_address, host=STRANGER) as stranger:
        for method in ("OPTIONS", "REGISTER", "BYE", "CANCEL", "SUBSCRIBE", "NONSENSE"):
            stranger.send(stranger.request(method, stranger.uri("x")))
        assert stranger.hears_nothing(1.0)
    assert silent_server.calls() == []
    assert silent_server.events("call.started") == []


def test_known_address_is_heard_beside_it(silent_server: Server, call: MakeCall) -> None:
    """The same server answers the address that it knows."""
    party = call("anything", server=silent_server.sip_address)
    assert party.hears_tone() == pytest.approx(1000, abs=2)


def test_stranger_is_refused_aloud(refusing_server: Server, sipp: RunSipp) -> None:
    """With unknown = "403" a stranger is told, also for OPTIONS."""
    sipp("uac_stranger_403", remote=refusing_server.sip_address, host=STRANGER).wait()
    with SipAgent(refusing_server.sip_address, host=STRANGER) as stranger:
        assert stranger.options().status == 403
    assert refusing_server.events("call.started") == []


def test_stranger_is_challenged(server: Server, sipp: RunSipp) -> None:
    """Where users may come from anywhere, a stranger is asked for a password."""
    sipp("uac_stranger_401", host=STRANGER).wait()


def test_unknown_number_looks_like_a_known_one_to_a_stranger(digest_server: Server) -> None:
    """404 is for those who are trusted: before, all numbers get the same answer."""
    with SipAgent(digest_server.sip_address, host=STRANGER) as stranger:
        answers = []
        for callee in ("tone", "nobody-here", "alice"):
            stranger.send(stranger.request("INVITE", stranger.uri(callee)))
            answers.append(shape(stranger.final("INVITE")))
    assert answers[0] == answers[1] == answers[2]


def shape(message: Message) -> tuple[int, list[str]]:
    """A response without what differs from one to the next anyhow."""
    challenges = [re.sub(r'(nonce|opaque)="[^"]*"', r"\1", text) for text in message.all("www-authenticate")]
    return message.status, challenges


@pytest.mark.parametrize("transport", ["u1", "t1"])
def test_right_password(
    transport: str, server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """A trunk with addresses and a user asks for the password, and then lets the call in."""
    peer = rtp(host=setup.SECURE)
    sipp(
        "uac_digest",
        host=setup.SECURE,
        callee="tone1000",
        caller=caller_name,
        rtp_port=peer.port,
        credentials=setup.SECURE_USER,
        transport=transport,
    ).wait()
    heard = audio.steady_part(peer.heard(), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(1000)
    assert server.started(caller_name)["trunk"] == "secure"


def test_right_password_from_a_wrong_address(server: Server, call: MakeCall) -> None:
    """The same user from elsewhere is not let in."""
    with pytest.raises(RefusedError) as refused:
        call("tone1000", host=STRANGER, credentials=setup.SECURE_USER)
    assert refused.value.status in (401, 403)


def test_user_without_addresses_comes_from_anywhere(digest_server: Server, call: MakeCall) -> None:
    """A digest-only trunk takes its user from any address, with either algorithm."""
    party = call("x", host="127.0.0.67", credentials=setup.SECURE_USER, server=digest_server.sip_address)
    assert party.hears_tone() == pytest.approx(1000, abs=2)


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_both_algorithms(algorithm: str, digest_server: Server, rtp: MakePeer) -> None:
    """MD5 and SHA-256 are offered, and each is accepted."""
    peer = rtp(host="127.0.0.67")
    with SipAgent(digest_server.sip_address, host="127.0.0.67") as caller:
        caller.send(caller.request("INVITE", caller.uri("x"), body=describe(peer)))
        challenges = caller.final("INVITE").all("www-authenticate")
        chosen = next(text for text in challenges if f"algorithm={algorithm}," in f"{text},".replace('"', ""))
        header = digest(chosen, "INVITE", caller.uri("x"), *setup.SECURE_USER)
        dialog = caller.call("x", peer, headers={"Authorization": header})
        dialog.hang_up()


@pytest.mark.parametrize("name", [("secure-user", "wrong"), ("nobody", "secure-password")])
def test_wrong_password(name: tuple[str, str], digest_server: Server, sipp: RunSipp) -> None:
    """A wrong password and a wrong user are refused, and no call starts."""
    before = len(digest_server.events("call.started"))
    sipp("uac_digest_wrong", remote=digest_server.sip_address, host="127.0.0.68", credentials=name).wait()
    assert len(digest_server.events("call.started")) == before


def test_wrong_user_looks_like_wrong_password(digest_server: Server, rtp: MakePeer) -> None:
    """Nobody can find out by the answer which users there are."""
    answers = []
    with SipAgent(digest_server.sip_address, host="127.0.0.69") as stranger:
        for name in (("secure-user", "wrong"), ("nobody", "wrong"), ("alice", "wrong")):
            with pytest.raises(RefusedError) as refused:
                stranger.call("x", rtp(host="127.0.0.69"), credentials=name)
            answers.append(shape(refused.value.response))
    assert answers[0] == answers[1] == answers[2]


def challenge_of(agent: SipAgent) -> str:
    agent.send(agent.request("INVITE", agent.uri("x")))
    return agent.final("INVITE").get("www-authenticate")


def test_replay_is_refused(digest_server: Server, rtp: MakePeer) -> None:
    """A response that let one call in lets no second one in; with a new count the nonce still serves."""
    peer = rtp(host="127.0.0.70")
    with SipAgent(digest_server.sip_address, host="127.0.0.70") as caller:
        challenge = challenge_of(caller)
        uri = caller.uri("x")
        used = digest(challenge, "INVITE", uri, *setup.SECURE_USER)
        caller.call("x", peer, headers={"Authorization": used}).hang_up()
        with pytest.raises(RefusedError) as refused:
            caller.call("x", peer, headers={"Authorization": used})
        assert refused.value.status == 401
        following = digest(challenge, "INVITE", uri, *setup.SECURE_USER, count=2)
        caller.call("x", peer, headers={"Authorization": following}).hang_up()


def test_stolen_response_is_refused(digest_server: Server, rtp: MakePeer) -> None:
    """A response overheard serves nobody at another address."""
    with (
        SipAgent(digest_server.sip_address, host="127.0.0.71") as caller,
        SipAgent(digest_server.sip_address, host="127.0.0.72") as thief,
    ):
        overheard = digest(challenge_of(caller), "INVITE", caller.uri("x"), *setup.SECURE_USER)
        with pytest.raises(RefusedError) as refused:
            thief.call("x", rtp(host="127.0.0.72"), headers={"Authorization": overheard})
        assert refused.value.status == 401


def test_foreign_nonce_is_stale(
    digest_server: Server, server: Server, rtp: MakePeer, agent: MakeAgent
) -> None:
    """A nonce of another server, or of this one before a restart, is answered with a new one."""
    peer = rtp(host="127.0.0.73")
    elsewhere = challenge_of(agent(host="127.0.0.73"))
    with SipAgent(digest_server.sip_address, host="127.0.0.73") as caller:
        old = digest(elsewhere, "INVITE", caller.uri("x"), *setup.SECURE_USER)
        with pytest.raises(RefusedError) as refused:
            caller.call("x", peer, headers={"Authorization": old})
        assert refused.value.status == 401
        renewed = refused.value.response.get("www-authenticate")
        assert "nonce=" in renewed
        fresh = digest(renewed, "INVITE", caller.uri("x"), *setup.SECURE_USER)
        caller.call("x", peer, headers={"Authorization": fresh}).hang_up()


def test_guessing_is_shut_out(digest_server: Server, rtp: MakePeer) -> None:
    """After many wrong passwords an address hears nothing, also for the right one; others do not notice."""
    with SipAgent(digest_server.sip_address, host="127.0.0.74") as guesser:
        for number in range(40):
            uri = guesser.uri("x")
            try:
                header = digest(challenge_of(guesser), "INVITE", uri, "secure-user", f"guess{number}")
                guesser.send(guesser.request("INVITE", uri, headers={"Authorization": header}))
                assert guesser.final("INVITE", 1.0).status in (401, 403)
            except TimeoutError:
                break
        else:
            pytest.fail("forty wrong passwords and still answered")
        guesser.send(guesser.request("INVITE", guesser.uri("x")))
        assert guesser.hears_nothing(1.0)
    with SipAgent(digest_server.sip_address, host="127.0.0.75") as other:
        other.call("x", rtp(host="127.0.0.75"), credentials=setup.SECURE_USER).hang_up()


def test_telephone_registers_and_is_called(
    server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """A telephone that registered is called by its name; after it has gone, it cannot be reached."""
    peer = rtp(host=setup.DESK)
    port = free_port()
    where: dict[str, Any] = {"host": setup.DESK, "port": port, "caller": "alice", "credentials": setup.ALICE}
    sipp("uac_register", keys={"expires": "120"}, **where).wait()
    phone = sipp("uas_answer", host=setup.DESK, port=port, rtp_port=peer.port)
    call_id = server.dial("alice", "tone:1000", trunk="alice")
    heard = audio.steady_part(peer.listen(0.5), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(1000)
    server.hang_up(call_id)
    phone.wait()
    sipp("uac_register", keys={"expires": "0"}, **where).wait()
    ended = server.ended(call_id=server.dial("alice", "tone:1000", trunk="alice"))
    assert ended.kind in ("unavailable", "not_found")


def test_telephone_calls(server: Server, call: MakeCall) -> None:
    """It proves its password with each call, and belongs to its own trunk."""
    party = call("tone1000", host=setup.DESK, user="bob", credentials=setup.BOB)
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    assert server.call_of("bob")["trunk"] == "bob"


def test_telephone_cannot_register_as_another(server: Server, agent: MakeAgent) -> None:
    """A right password does not give another's name."""
    phone = agent(host=setup.DESK, user="alice")
    uri = phone.uri("")
    to = f"<sip:alice@127.0.0.1:{server.sip_port}>"
    phone.send(phone.request("REGISTER", uri, to=to))
    challenge = phone.final("REGISTER").get("www-authenticate")
    header = digest(challenge, "REGISTER", uri, *setup.BOB)
    phone.send(phone.request("REGISTER", uri, to=to, cseq=2, headers={"Authorization": header}))
    assert phone.final("REGISTER").status == 403


def test_audio_of_a_stranger_is_not_heard(server: Server, call: MakeCall, rtp: MakePeer) -> None:
    """RTP from an address outside the trunk, sprayed at a call's port, is not heard and draws nothing out."""
    speaker, listener = call("room-bleed"), call("room-bleed")
    speaker.rtp.play(audio.tone(440, 1.0), loop=True)
    listener.rtp.listen(0.5)
    attacker = rtp(host=STRANGER)
    assert speaker.dialog.answer is not None
    attacker.play(audio.tone(1000, 1.0, level_dbfs=-6), loop=True)
    attacker.remote = ("127.0.0.1", speaker.dialog.answer.port)
    heard = listener.rtp.listen(1.0)
    assert attacker.sent > 20
    assert attacker.packets == []
    assert audio.find_tone(heard, 8000) == audio.near(440)
    assert audio.tone_level_dbfs(heard, 8000, 1000) < -50


def test_api_wants_its_token(server: Server) -> None:
    """Without the token, or with another, nothing of /v1 is told; the token is for the user's eyes alone."""
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        for method, path in (("GET", "/v1/calls"), ("POST", "/v1/calls"), ("GET", "/v1/rooms")):
            assert httpx.request(method, server.base_url + path, headers=headers).status_code == 401
    token = server.state / "sipbridge" / "api-token"
    assert token.stat().st_mode & 0o077 == 0
