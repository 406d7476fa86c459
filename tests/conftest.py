# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: the server, and those who call it or are called."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from tests.support import audio, setup
from tests.support.codecs import Codec, Pcmu
from tests.support.parties import Call, new_name
from tests.support.ports import free_port
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.server import Server
from tests.support.sip_agent import SipAgent
from tests.support.sipp import Sipp
from tests.support.stalls import TRIES_AFTER_STALL, Mark, StallWatch

SHARED_SERVER = pytest.StashKey[Server]()
STALLS = pytest.StashKey[StallWatch]()
MEASURED = pytest.StashKey[tuple[Mark, Any]]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What fails while the machine stands still is run again."""
    watch = config.stash[STALLS] = StallWatch(Path(tempfile.mkstemp(prefix="stalls")[1]))
    config.add_cleanup(watch.close)
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=TRIES_AFTER_STALL, condition=watch.has_stalled))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[STALLS].begin()


class Measured(Protocol):
    def __call__[T](self, measure: Callable[[], T]) -> T: ...


class StartServer(Protocol):
    def __call__(self, config: Mapping[str, Any] | None = None, **options: Any) -> Server: ...


class MakePeer(Protocol):
    def __call__(self, codec: type[Codec] = Pcmu, **options: Any) -> RtpPeer: ...


class MakeAgent(Protocol):
    def __call__(self, **options: Any) -> SipAgent: ...


class MakeCall(Protocol):
    def __call__(
        self,
        callee: str,
        codec: type[Codec] = Pcmu,
        *,
        host: str = "127.0.0.1",
        transport: str = "udp",
        **more: Any,
    ) -> Call: ...


class RunSipp(Protocol):
    def __call__(self, scenario: str, **options: Any) -> Sipp: ...


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Measures once for all tests of a module, and anew for one that is run again after a stall."""
    module = request.node.getparent(pytest.Module)
    watch = request.config.stash[STALLS]

    def measure_once[T](measure: Callable[[], T]) -> T:
        if MEASURED not in module.stash or request.node.execution_count > 1:
            module.stash[MEASURED] = watch.begin(), measure()
        begun, result = module.stash[MEASURED]
        watch.begin_at(begun)
        return cast(T, result)

    return measure_once


@pytest.fixture(scope="session")
def rtp_loop() -> Iterator[RtpLoop]:
    """The thread of all RTP peers."""
    loop = RtpLoop()
    yield loop
    loop.close()


@pytest.fixture
def rtp(rtp_loop: RtpLoop) -> Iterator[MakePeer]:
    """Makes RTP peers, which are closed after the test."""
    peers: list[RtpPeer] = []

    def make(codec: type[Codec] = Pcmu, **options: Any) -> RtpPeer:
        peers.append(RtpPeer(rtp_loop, codec(), **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture(scope="session")
def far_ports() -> list[int]:
    """SIP ports of a carrier's servers, where tests put callees."""
    return [free_port() for _ in range(3)]


@pytest.fixture(scope="session")
def played_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the rule "play" plays: two seconds of speech."""
    return audio.write_wav(tmp_path_factory.mktemp("sounds") / "speech.wav", audio.speech(2.0, voice=1))


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    far_ports: list[int],
    played_file: Path,
) -> Iterator[Server]:
    """One server for all tests that need nothing of their own."""
    port = free_port()
    config = setup.shared_config(port, far_ports, played_file)
    with Server(tmp_path_factory.mktemp("server"), config, sip_port=port) as shared:
        request.config.stash[SHARED_SERVER] = shared
        yield shared


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers with configurations of the test's own; they end with the test, and have to end well."""
    servers: list[Server] = []

    def start(config: Mapping[str, Any] | None = None, **options: Any) -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}", config, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Iterator[MakeAgent]:
    """Makes scripted SIP parties that speak to the shared server, or to `server=(host, port)`."""
    agents: list[SipAgent] = []

    def make(**options: Any) -> SipAgent:
        host = options.setdefault("host", "127.0.0.1")
        if "server" not in options:
            port = request.getfixturevalue("server").sip_port
            options["server"] = ("::1" if ":" in host else "127.0.0.1", port)
        options.setdefault("user", new_name())
        agents.append(SipAgent(**options))
        return agents[-1]

    yield make
    for made in agents:
        made.close()


@pytest.fixture
def call(agent: MakeAgent, rtp: MakePeer) -> Iterator[MakeCall]:
    """Makes calls to the server; those that are still up at the end are hung up."""
    calls: list[Call] = []

    def make(
        callee: str,
        codec: type[Codec] = Pcmu,
        *,
        host: str = "127.0.0.1",
        transport: str = "udp",
        **more: Any,
    ) -> Call:
        options = {name: more.pop(name) for name in ("server", "user") if name in more}
        party = agent(host=host, transport=transport, **options)
        peer = rtp(codec, host=host)
        calls.append(Call(party, peer, party.call(callee, peer, **more), party.user))
        return calls[-1]

    yield make
    for made in calls:
        if not made.dialog.ended:
            made.hang_up()


@pytest.fixture
def sipp(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunSipp]:
    """Runs SIPp: scenarios uac_* call the shared server (or `remote`), uas_* wait for a call."""
    running: list[Sipp] = []

    def run(scenario: str, **options: Any) -> Sipp:
        if scenario.startswith("uac_") and "remote" not in options:
            options["remote"] = request.getfixturevalue("server").sip_address
        running.append(Sipp(scenario, tmp_path / "sipp", **options))
        if scenario.startswith("uas_"):
            running[-1].wait_listening()
        return running[-1]

    yield run
    for process in running:
        process.kill()


@pytest.fixture
def caller_name() -> str:
    """A caller's name of this test alone."""
    return new_name()
