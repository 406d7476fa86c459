# SPDX-License-Identifier: GPL-3.0-or-later
"""The real server as a process of its own, with a configuration written for the test."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from tests.support import toml
from tests.support.ports import free_port, free_udp_range
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
# Of /healthz. Transactions live on for 32 s after a call (RFC 3261, timers H and J).
_COUNTERS = ("calls", "streams", "ports", "transactions", "descriptors", "threads")
RTP_PORTS = 400  # of the range given to a server, unless its configuration says otherwise


def clean_environment(state: Path) -> dict[str, str]:
    """The environment without settings of the user's own, and with a state directory of the test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIPBRIDGE_")}
    return {**kept, "XDG_STATE_HOME": str(state), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a call ended, as the log says."""

    call_id: str
    kind: str
    by: str
    sip_code: int
    detail: str
    codec: str
    duration_s: float
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> "Ended":
        return cls(
            call_id=event["call_id"],
            kind=event["reason"],
            by=event["ended_by"],
            sip_code=event["sip_code"],
            detail=event["detail"],
            codec=event["codec"],
            duration_s=event["duration_s"],
            fields=event,
        )


class Server:
    """`sipbridge serve` with its log, its API and its end."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any] | None = None,
        *,
        sip_port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it and waits until it is ready; addresses are filled in where `config` has none."""
        self.directory = directory
        self.sip_port = sip_port or free_port()
        self.http_port = free_port()
        tables: dict[str, Any] = dict(config or {})
        first = free_udp_range(RTP_PORTS)
        sip = {"listen": [f"127.0.0.1:{self.sip_port}"], "rtp_ports": [first, first + RTP_PORTS - 1]}
        tables["sip"] = {**sip, **tables.get("sip", {})}
        tables["http"] = {"listen": f"127.0.0.1:{self.http_port}", **tables.get("http", {})}
        self.rtp_ports: tuple[int, int] = tuple(tables["sip"]["rtp_ports"])
        directory.mkdir(parents=True, exist_ok=True)
        self.config_path = directory / "sipbridge.toml"
        self.config_path.write_text(toml.dump(tables))
        self.state = directory / "state"
        self.environment = {**clean_environment(self.state), **(environment or {})}
        self._events: list[dict[str, Any]] = []
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sipbridge", "serve", "--config", str(self.config_path)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read_log, name="server-log", daemon=True)
        self._reader.start()
        self.base_url = f"http://127.0.0.1:{self.http_port}"
        # No connection is kept, so that the server's descriptors count calls alone.
        self.http = httpx.Client(
            base_url=self.base_url, timeout=20.0, limits=httpx.Limits(max_keepalive_connections=0)
        )
        try:
            wait_until(self._is_ready, 30.0, "the server is ready")
            token = (self.state / "sipbridge" / "api-token").read_text().strip()
        except BaseException as error:
            self.kill()
            error.add_note(self.tail())
            raise
        self.http.headers["Authorization"] = f"Bearer {token}"

    @property
    def sip_address(self) -> tuple[str, int]:
        return "127.0.0.1", self.sip_port

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.tail()}"
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with (self.directory / "server.log").open("wb") as copy:
            for line in self.process.stderr:
                copy.write(line)
                copy.flush()
                text = line.decode("utf-8", "replace").rstrip()
                try:
                    event = json.loads(text)
                except ValueError:
                    event = None
                with self._changed:
                    self._lines.append(text)
                    if isinstance(event, dict):
                        event["event"] = str(event.get("event", ""))
                        self._events.append(event)
                    self._changed.notify_all()

    def tail(self, count: int = 40) -> str:
        """The last lines of the log."""
        with self._changed:
            return "\n".join(self._lines[-count:])

    # What happened --------------------------------------------------------------------------------

    def events(self, name: str = "", **fields: Any) -> list[dict[str, Any]]:
        """Events of the log so far, in order, with this name and these fields (`from_` stands for "from")."""
        with self._changed:
            return [event for event in self._events if _matches(event, name, fields)]

    def wait_event(self, name: str, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The first event of this name and these fields; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self.events(name, **fields), timeout_s)
            found = self.events(name, **fields)
        assert found, f"no {name!r} with {fields} within {timeout_s} s:\n{self.tail()}"
        return found[0]

    def started(self, caller: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """The start of the call from this user."""
        return self.wait_event("call.started", timeout_s, from_=_Contains(caller))

    def ended(self, caller: str = "", *, call_id: str = "", timeout_s: float = 10.0) -> Ended:
        """The end of the call from this user, or with this id; there must be just one."""
        fields: dict[str, Any] = {"call_id": call_id} if call_id else {"from_": _Contains(caller)}
        found = Ended.of(self.wait_event("call.ended", timeout_s, **fields))
        assert len(self.events("call.ended", call_id=found.call_id)) == 1
        return found

    def digits(self, call_id: str) -> str:
        """The DTMF digits that the log tells of this call."""
        return "".join(event["digit"] for event in self.events("call.dtmf", call_id=call_id))

    def wait_digits(self, call_id: str, digits: str, timeout_s: float = 10.0) -> None:
        """Until so many digits were logged; they must be these."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.digits(call_id)) >= len(digits), timeout_s)
        assert self.digits(call_id) == digits, self.tail()

    # The API --------------------------------------------------------------------------------------

    def calls(self) -> list[dict[str, Any]]:
        response = self.http.get("/v1/calls")
        assert response.status_code == 200, response.text
        return [call for call in response.json()["calls"] if call["state"] != "ended"]

    def call_of(self, caller: str) -> dict[str, Any]:
        """The running call from this user."""
        return wait_until(
            lambda: next((call for call in self.calls() if caller in call["from"]), {}),
            5.0,
            f"a call of {caller}",
        )

    def dial(self, to: str, target: str, **more: Any) -> str:
        """POST /v1/calls; gives the call's id."""
        response = self.http.post("/v1/calls", json={"to": to, "target": target, **more})
        assert response.status_code in (200, 201, 202), f"{response.status_code}: {response.text}"
        return str(response.json()["id"])

    def wait_state(self, call_id: str, state: str, timeout_s: float = 10.0) -> None:
        """Until the API says that the call is in this state."""

        def reached() -> bool:
            response = self.http.get(f"/v1/calls/{call_id}")
            return response.status_code == 200 and response.json()["state"] == state

        wait_until(reached, timeout_s, f"{call_id} is {state}")

    def hang_up(self, call_id: str) -> None:
        response = self.http.post(f"/v1/calls/{call_id}/hangup")
        assert response.status_code in (200, 202, 204), response.text

    def transfer(self, call_id: str, to: str) -> httpx.Response:
        """Ask the API to; the answer comes when the telephone is there, or stays."""
        return self.http.post(f"/v1/calls/{call_id}/transfer", json={"to": to}, timeout=20.0)

    def hold(self, call_id: str, held: bool) -> httpx.Response:
        """Ask the API to hold a call, or to take it back."""
        return self.http.post(f"/v1/calls/{call_id}/{'hold' if held else 'unhold'}")

    def send_dtmf(self, call_id: str, digits: str) -> None:
        response = self.http.post(f"/v1/calls/{call_id}/dtmf", json={"digits": digits})
        assert response.status_code in (200, 202, 204), response.text

    def counters(self) -> dict[str, int]:
        """Calls and what is theirs, as /healthz tells; descriptors and threads also as the system sees."""
        response = self.http.get("/healthz")
        assert response.status_code == 200, response.text
        told = response.json()["counters"]
        counters = {name: told[name] for name in _COUNTERS}
        process = psutil.Process(self.process.pid)
        return {**counters, "system descriptors": process.num_fds(), "system threads": process.num_threads()}

    def health(self) -> dict[str, Any]:
        """The whole answer of /healthz."""
        return dict(self.http.get("/healthz").json())

    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def wait_idle(self, timeout_s: float = 10.0) -> None:
        """Until no call is left."""
        wait_until(lambda: not self.calls(), timeout_s, "no call is left")

    def wait_counters(self, expected: Mapping[str, int], timeout_s: float) -> None:
        """Until no counter is above these; a thread that started the process may be gone."""

        def settled() -> bool:
            return all(count <= expected[name] for name, count in self.counters().items())

        try:
            wait_until(settled, timeout_s, f"no counter is above {expected}", interval_s=0.5)
        except AssertionError as error:
            error.add_note(f"counters: {self.counters()}\n{self.tail(15)}")
            raise

    # Its end --------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self, timeout_s: float = 20.0) -> int:
        code = self.process.wait(timeout_s)
        self._close()
        return code

    def stop(self) -> None:
        """SIGTERM, twice when calls are left; it must end well, and without a word of an error of ours."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(3.0)
            except subprocess.TimeoutExpired:
                self.terminate()
        try:
            code = self.wait_exit()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server does not end on SIGTERM:\n{self.tail()}") from None
        assert code == 0, f"the server ended with {code}:\n{self.tail()}"
        with self._changed:
            tracebacks = [line for line in self._lines if "Traceback" in line]
        assert not tracebacks, tracebacks[0]

    def kill(self) -> None:
        """The hard end, for a server that did not start or does not stop."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self._reader.join(5.0)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.tail())
        self.stop()


class _Contains(str):
    """A field that has to contain this text, rather than be it."""


def _matches(event: Mapping[str, Any], name: str, fields: Mapping[str, Any]) -> bool:
    if name and event["event"] != name:
        return False
    for key, wanted in fields.items():
        found = event.get(key.rstrip("_"))
        if isinstance(wanted, _Contains) and str(wanted) in str(found):
            continue
        if found != wanted:
            return False
    return True
