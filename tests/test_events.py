# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of sipbridge.events."""

import dataclasses
import json
import time

import pytest

from sipbridge import events
from sipbridge.errors import EndReason, Party
from sipbridge.events import CallDtmf, CallEnded, CallEvent, CallStarted


def _ended() -> CallEnded:
    return CallEnded(
        call_id="c1",
        at=1.5,
        reason=EndReason.from_sip(486, "Busy Here", Party.CALLEE),
        direction="outbound",
        from_="100",
        to="200",
        trunk="pbx",
        rule="",
        target="local:demo",
    )


def test_an_event_as_json() -> None:
    """Names are those of the API: no underscore behind from, the reason opened."""
    data = json.loads(json.dumps(_ended().as_dict()))
    assert data["event"] == "call.ended"
    assert (data["call_id"], data["at"], data["from"], data["to"]) == ("c1", 1.5, "100", "200")
    assert data["reason"] == {
        "kind": "busy",
        "detail": "Busy Here",
        "by": "callee",
        "sip_code": 486,
        "cause": 17,
    }
    assert "from_" not in data


def test_an_end_tells_what_a_start_told() -> None:
    """One event is enough to write a record of the call."""
    begin = {field.name for field in dataclasses.fields(CallStarted)}
    assert begin <= {field.name for field in dataclasses.fields(CallEnded)}


def test_names_differ() -> None:
    """A client tells events by their names."""
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, CallEvent)]
    names = [kind.name for kind in kinds if kind is not CallEvent]
    assert len(set(names)) == len(names) > 5
    assert all(name.startswith("call.") for name in names)


def test_events_are_stamped_and_frozen() -> None:
    """The time is now unless it is given."""
    before = time.time()
    event = CallDtmf(call_id="c1", digit="5", duration_ms=100, method="info", party=Party.CALLER)
    assert before <= event.at <= time.time()
    assert event.as_dict()["party"] == "caller"
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.digit = "6"  # type: ignore[misc]
