# SPDX-License-Identifier: GPL-3.0-or-later
"""Which class a target's scheme stands for."""

import importlib.metadata

import pytest

from sipbridge.errors import EndKind, RtcError
from sipbridge.routing import Target
from sipbridge.rtc import registry
from sipbridge.rtc.base import RtcConnection, RtcContext
from sipbridge.rtc.local import LocalConnection
from tests.contract.duplex import DuplexConnection
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import make_context


def add_entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Installs packages that name backends."""
    entries = [importlib.metadata.EntryPoint(name, value, "sipbridge.rtc") for name, value in values.items()]
    entries.append(importlib.metadata.EntryPoint("other", "nowhere:Nothing", "another.group"))
    monkeypatch.setattr(importlib.metadata, "entry_points", importlib.metadata.EntryPoints(entries).select)


@pytest.fixture
def context() -> RtcContext:
    return make_context(FakeMedia())


@pytest.mark.parametrize("scheme", registry.BACKENDS)
def test_own_backends(scheme: str) -> None:
    """Each location in the table is a backend."""
    assert issubclass(registry.load_backend(scheme), RtcConnection)


def test_backend_of_a_third_party(monkeypatch: pytest.MonkeyPatch, context: RtcContext) -> None:
    """It is found by its entry point, and made as any other."""
    add_entry_points(monkeypatch, duplex="tests.contract.duplex:DuplexConnection")
    assert registry.schemes() == [
        "agent",
        "agora",
        "audiosocket",
        "duplex",
        "echo",
        "livekit",
        "local",
        "play",
        "silence",
        "tone",
        "ws",
        "wss",
    ]
    assert type(registry.make_connection(Target.parse("duplex:900"), context)) is DuplexConnection


def test_own_names_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package cannot put itself in the place of a backend of ours."""
    add_entry_points(monkeypatch, local="tests.contract.duplex:DuplexConnection")
    assert registry.load_backend("local") is LocalConnection


def test_only_what_is_asked_for_is_imported(monkeypatch: pytest.MonkeyPatch, context: RtcContext) -> None:
    """A package that cannot be imported harms only the calls that want it."""
    add_entry_points(monkeypatch, broken="sipbridge_no_such_package:Connection")
    registry.make_connection(Target.parse("echo:"), context)
    with pytest.raises(RtcError, match=r"broken:room.*sipbridge_no_such_package") as caught:
        registry.make_connection(Target.parse("broken:room"), context)
    assert caught.value.reason.kind is EndKind.CHANNEL_FAILED
    assert isinstance(caught.value.__cause__, ImportError)


def test_location_that_is_wrong(monkeypatch: pytest.MonkeyPatch, context: RtcContext) -> None:
    """A module without the class that its entry point names is told as such."""
    add_entry_points(monkeypatch, broken="tests.contract.duplex:Nobody")
    with pytest.raises(RtcError, match="Nobody"):
        registry.make_connection(Target.parse("broken:room"), context)


def test_unknown_scheme(monkeypatch: pytest.MonkeyPatch, context: RtcContext) -> None:
    """The message names the target and what there is."""
    add_entry_points(monkeypatch, duplex="tests.contract.duplex:DuplexConnection")
    with pytest.raises(RtcError) as caught:
        registry.make_connection(Target.parse("locl:room"), context)
    assert caught.value.reason.detail == (
        "target locl:room: no channel backend for 'locl': "
        "expected one of agent, agora, audiosocket, duplex, echo, livekit, local, play, silence, tone, "
        "ws, wss"
    )
