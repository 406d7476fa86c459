# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line.

Exit codes: 0 done (of a dial: answered, and ended well), 1 refused or failed, 2 wrong usage or
configuration. What is asked for goes to the standard output, errors and the log to the other one.
"""

import asyncio
import contextlib
import dataclasses
import gc
import ipaddress
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

import typer
from pydantic import BaseModel, ValidationError

from sipbridge import __version__, ports
from sipbridge.client import ApiClient, NoServerError, TokenError, api_url, find_token
from sipbridge.config import (
    Config,
    LogConfig,
    TrunkConfig,
    config_warnings,
    load_config,
    required_open_files,
    required_ports,
)
from sipbridge.errors import CallError, ConfigError, ConfigFileError, EndKind, SipbridgeError
from sipbridge.http import schema
from sipbridge.http.links import RoomLinks, room_url
from sipbridge.log import LogWriter
from sipbridge.routing import join_host_port, match_rule, match_trunk, split_host_port

if TYPE_CHECKING:  # loading it loads the SIP engine, which most commands have no use for
    from sipbridge.app import App
    from sipbridge.loadtest.capacity import Step
    from sipbridge.proxy.model import Model
    from sipbridge.proxy.server import ProxySettings

POLL_S = 0.25  # how often a dial looks at its call
SETUP_POLL_S = 0.05  # until the answer: some let it ring for the blink of an eye
_FIRST_LINK_S = 12 * 3600  # the link that is shown at the start
PLAY_TAIL_S = 0.5  # from the end of the played file to the hang-up

cli = typer.Typer(
    name="sipbridge",
    help="A bridge between SIP telephone calls and real-time audio channels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration (TOML). Without it: the defaults."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ApiOption = Annotated[
    str | None,
    typer.Option(
        "--api",
        metavar="URL",
        envvar="SIPBRIDGE_API",
        help="The running server. Default: this host, at SIPBRIDGE_HTTP__LISTEN, else 127.0.0.1:8080.",
    ),
]
CallId = Annotated[str, typer.Argument(metavar="ID", help="The call's id, as `sipbridge calls` shows it.")]


def main() -> None:
    """What the command ``sipbridge`` runs."""
    cli()


# ---------------------------------------------------------------- serve


@cli.command()
def serve(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Run the bridge.

    SIGTERM and Ctrl-C let no new call in and wait for those in progress, at most drain_s of [sip];
    a second one ends at once.

    \b
    sipbridge serve
    sipbridge serve --config conf/sipbridge.toml
    """
    import uvloop  # a message of a WebSocket costs a quarter less

    with _errors_shown():
        settings = load_config(config, os.environ)
        _raise_open_files(required_open_files(settings))
        with LogWriter(settings.log):
            try:
                uvloop.run(_serve(settings, as_json))
            except ConfigError as error:
                error.file = error.file or config
                raise


async def _serve(config: Config, as_json: bool) -> None:
    stops = _Stops()
    app = _make_app(config)
    await app.start()
    # What was made until here stays. To look at all of it again would stop every thread for some 80 ms.
    gc.collect()
    gc.freeze()
    try:
        _print_listening(config, app.listening, as_json)
        await stops.asked.wait()
        _note(f"no new calls; waiting at most {config.sip.drain_s:g} s for the last to end (again: now)")
        await _until(stops.insisted, app.drain(config.sip.drain_s))
    finally:
        await app.stop()


def _make_app(config: Config, *, http: bool = True) -> "App":
    from sipbridge.app import App

    return App(config, http=http)


class _Stops:
    """SIGINT and SIGTERM: the first asks to stop, the second insists."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


async def _until(event: asyncio.Event, work: Any) -> None:
    """Waits for `work`, or for the event when that comes first."""
    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(event.wait()))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def _raise_open_files(needed: int) -> None:
    """Uses what the system allows; most give far fewer files than they would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        if wanted < needed:
            _note(f"open files: {_open_files_line(needed)}")


def _open_files_line(needed: int) -> str:
    return (
        f"{needed} are needed for max_calls, and the system allows {_max_open_files()}; raise it with "
        f"LimitNOFILE={needed} in the systemd unit, or with `ulimit -n {needed}` as root before the start"
    )


def _max_open_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _print_listening(config: Config, listening: Sequence[str], as_json: bool) -> None:
    if as_json:
        _print_json({"listening": list(listening)})
        return
    lines = ["sipbridge is listening:"]
    for entry in listening:
        transport, _, address = entry.partition(" ")
        about = f"   description: {api_url(address)}/docs" if transport == "http" else ""
        lines.append(f"  {transport:<5} {address}{about}")
    typer.echo("\n".join([*lines, *_first_room(config, listening), *_first_call(config, listening)]))
    sys.stdout.flush()


def _first_room(config: Config, listening: Sequence[str]) -> Iterator[str]:
    """A link for a browser to the room in which callers of "demo" meet, where they do."""
    rules = (match_rule(config, trunk.name, "sipbridge", "demo") for trunk in config.trunk)
    if not any(rule is not None and rule.target in ("local:demo", "local:{callee}") for rule in rules):
        return
    http = [entry.partition(" ")[2] for entry in listening if entry.startswith("http ")]
    with contextlib.suppress(ConfigError):
        token = find_token(config)
        if http and token is not None:
            room_token, _ = RoomLinks([token]).make("demo", _FIRST_LINK_S)
            yield f"A browser on this host joins the room demo (for {_FIRST_LINK_S // 3600} hours from now):"
            yield f"  {room_url(api_url(http[0]), 'demo', room_token)}"


def _first_call(config: Config, listening: Sequence[str]) -> Iterator[str]:
    """How to make a first call, as far as this configuration lets one in."""
    program = _program()
    sip = [(transport, address) for transport, _, address in (entry.partition(" ") for entry in listening)]
    sip = [(transport, address) for transport, address in sip if transport in ("udp", "tcp")]
    if not sip:
        return
    transport, address = sip[0]
    parameter = "" if transport == "udp" else f";transport={transport}"
    host, port = split_host_port(address)
    this_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    other_hosts = _own_address() if this_host != host else host
    user = "echo" if _target(config, this_host, "echo") == "echo:" else "demo"
    uris = [
        f"sip:{user}@{join_host_port(name, port)}{parameter}"
        for name in dict.fromkeys((this_host, other_hosts))
        if _target(config, name, user)
    ]
    if uris:
        yield "A first call with no telephone at hand, from another terminal (FILE.wav: any that you have):"
        yield f"  {program} dial {shlex.quote(uris[0])} --play FILE.wav --record heard.wav"
        yield "The same by a softphone, with no account:"
        yield from (f"  {uri}" for uri in uris)
    phone = next((trunk for trunk in config.trunk if trunk.kind == "phone" and trunk.auth is not None), None)
    if phone is not None and phone.auth is not None:
        domain = join_host_port(other_hosts, port)
        yield f"A softphone registers as {phone.auth.username} at {domain} ({transport.upper()}). To ring it:"
        yield f"  {program} dial {phone.auth.username} --target tone:440"
    outbound = next((trunk for trunk in config.trunk if trunk.outbound is not None), None)
    if outbound is not None:
        yield "A call out:"
        yield f"  {program} dial NUMBER --trunk {outbound.name} --target tone:440"


def _target(config: Config, host: str, callee: str) -> str:
    """What a call from this address meets that has no account; "" when it is not let in, or meets nothing."""
    trunk = match_trunk(config, ipaddress.ip_address(host))
    rule = match_rule(config, trunk.name, "sipbridge", callee) if trunk is not None else None
    return rule.target if rule is not None else ""


def _own_address() -> str:
    """The address of this host that others most likely reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing: the system only looks for the route
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


def _program() -> str:
    """How this program can be called from here."""
    if shutil.which("sipbridge") is not None or os.path.basename(sys.argv[0]) != "sipbridge":
        return "sipbridge"
    return min(os.path.relpath(sys.argv[0]), os.path.abspath(sys.argv[0]), key=len)


# ---------------------------------------------------------------- check


@cli.command()
def check(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    online: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="Try this for real, for some seconds: agora."),
    ] = None,
) -> None:
    """Check a configuration, and whether this host can run it.

    Shows where it would listen and who has a port that is not free, the trunks and rules, the ports a
    firewall has to open, and the limit of open files. Starts nothing.

    \b
    sipbridge check --config conf/sipbridge.toml
    sipbridge check --config my.toml --online agora
    """
    if online is not None:
        with _errors_shown():
            _check_online(load_config(config, os.environ), online, as_json)
        return
    with _errors_shown():
        settings = load_config(config, os.environ)
        listeners = [
            {
                "transport": kind,
                "address": join_host_port(host, port),
                "problem": ports.find_problem("udp" if kind == "udp" else "tcp", host, port),
            }
            for kind, host, port in _listeners(settings)
        ]
        needed = required_open_files(settings)
        if as_json:
            _print_json(
                {
                    "config": None if config is None else str(config),
                    "listeners": listeners,
                    "trunks": [_trunk_row(trunk) for trunk in settings.trunk],
                    "pbxs": [
                        {"name": pbx.name, "protocol": pbx.protocol, "listen": pbx.listen}
                        for pbx in settings.pbx
                    ],
                    "rules": [rule.model_dump(by_alias=True) for rule in settings.rule],
                    "agents": [
                        {"name": agent.name, "protocol": agent.protocol, "url": list(agent.url)}
                        for agent in settings.agent
                    ],
                    "firewall": [
                        {"transport": transport, "first": first, "last": last, "for": purpose}
                        for transport, first, last, purpose in required_ports(settings)
                    ],
                    "open_files": {"needed": needed, "allowed": _max_open_files()},
                    "warnings": config_warnings(settings),
                }
            )
        else:
            typer.echo(_check_report(config, settings, listeners, needed))
        # A server of ours that has the port is what this one will replace.
        errors = [
            _listen_error(config, settings, item)
            for item in listeners
            if item["problem"] and " in use by sipbridge " not in str(item["problem"])
        ]
        if errors:
            raise ConfigFileError(errors)


def _check_online(config: Config, network: str, as_json: bool) -> None:
    if network != "agora":
        raise ConfigError("can be tried online: agora", key="--online")
    if config.agora is None:
        raise ConfigError("there is no [agora] in the configuration", key="--online")
    from sipbridge.rtc.agora.check import Step, check_online

    def show(step: Step) -> None:
        if as_json:
            _print_json(dataclasses.asdict(step))
        else:
            typer.echo(f"{'ok    ' if step.is_well else 'FAILED'}  {step.name}: {step.detail}")

    if not asyncio.run(check_online(config.agora, show)):
        raise typer.Exit(1)


def _listen_error(file: Path | None, config: Config, listener: Mapping[str, Any]) -> ConfigError:
    table, key = {"tls": ("sip.tls", "port"), "http": ("http", "listen")}.get(
        listener["transport"], ("sip", "listen")
    )
    for pbx in config.pbx:
        if (pbx.protocol, pbx.listen) == (listener["transport"], listener["address"]):
            table = f'[[pbx]] "{pbx.name}"'
    return ConfigError(listener["problem"], file=file, table=table, key=key)


def _listeners(config: Config) -> Iterator[tuple[str, str, int]]:
    """What a server of this configuration listens at: transport or protocol, host and port."""
    for listen in config.sip.listen:
        host, port = split_host_port(listen)
        for transport in config.sip.transports:
            if transport == "tls" and config.sip.tls is not None:
                yield "tls", host, config.sip.tls.port
            else:
                yield transport, host, port or 0
    for protocol, listen in (
        *((pbx.protocol, pbx.listen) for pbx in config.pbx),
        ("http", config.http.listen),
    ):
        host, port = split_host_port(listen)
        yield protocol, host, port or 0


def _trunk_row(trunk: TrunkConfig) -> dict[str, Any]:
    return {
        "name": trunk.name,
        "kind": trunk.kind,
        "allowed_addresses": [str(network) for network in trunk.allowed_addresses],
        "user": "" if trunk.auth is None else trunk.auth.username,
        "outbound": [] if trunk.outbound is None else list(trunk.outbound.servers),
        "codecs": None if trunk.codecs is None else list(trunk.codecs),
        "max_calls": trunk.max_calls,
    }


def _check_report(
    path: Path | None, config: Config, listeners: Sequence[Mapping[str, Any]], needed: int
) -> str:
    trunks = [_trunk_row(trunk) for trunk in config.trunk]
    firewall = [
        (kind, str(first) if first == last else f"{first}-{last}", purpose)
        for kind, first, last, purpose in required_ports(config)
    ]
    allowed = _max_open_files()
    return "\n".join(
        [
            f"{path}: valid" if path is not None else "The defaults (no --config):",
            "",
            _table(
                ("LISTENS", "AT", ""),
                [(item["transport"], item["address"], item["problem"] or "free") for item in listeners],
            ),
            "",
            _table(
                ("TRUNK", "KIND", "LETS IN", "USER", "CALLS OUT BY", "CODECS"),
                [
                    (
                        row["name"],
                        row["kind"],
                        " ".join(row["allowed_addresses"]) or ("anywhere" if row["user"] else "nobody"),
                        row["user"] or "-",
                        " ".join(row["outbound"]) or "-",
                        " ".join(row["codecs"] or config.sip.codecs),
                    )
                    for row in trunks
                ],
            ),
            "",
            *(
                [
                    _table(
                        ("PBX", "PROTOCOL", "LETS IN", "USER"),
                        [
                            (
                                pbx.name,
                                pbx.protocol,
                                " ".join(str(network) for network in pbx.allowed_addresses) or "anywhere",
                                "-" if pbx.auth is None else pbx.auth.username,
                            )
                            for pbx in config.pbx
                        ],
                    ),
                    "",
                ]
                if config.pbx
                else []
            ),
            _table(
                ("RULE", "TRUNK", "FROM", "TO", "TARGET"),
                [
                    (rule.name, rule.trunk or "any", rule.from_ or "any", rule.to or "any", rule.target)
                    for rule in config.rule
                ],
            )
            if config.rule
            else "No rules: every call that comes in is refused.",
            "",
            *(
                [
                    _table(
                        ("AGENT", "PROTOCOL", "URL"),
                        [(agent.name, agent.protocol, " ".join(agent.url)) for agent in config.agent],
                    ),
                    "",
                ]
                if config.agent
                else []
            ),
            _table(("FIREWALL", "PORT", "FOR"), firewall)
            if firewall
            else "No port for a firewall to open: all of it is for this host.",
            "",
            f"Open files: {needed} needed, {allowed} allowed."
            if allowed >= needed
            else f"Open files: {_open_files_line(needed)}.",
            *(f"Note: {warning}." for warning in config_warnings(config)),
        ]
    )


# ---------------------------------------------------------------- dial


@cli.command()
def dial(
    to: Annotated[
        str, typer.Argument(metavar="TO", help="A sip: URI, a phone's user name; with --trunk a number.")
    ],
    target: Annotated[
        str,
        typer.Option(help="What the callee meets: local:ROOM, livekit:ROOM, echo:, tone:HZ. Else silence."),
    ] = "",
    trunk: Annotated[str, typer.Option(metavar="NAME", help="The [[trunk]] to go out by.")] = "",
    from_: Annotated[
        str,
        typer.Option("--from", metavar="NUMBER", help="The caller that is shown: a number or a sip: URI."),
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header of the INVITE; may be repeated.")
    ] = None,
    play: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A sound file for the callee; hangs up at its end.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A WAV file to write what the callee says to.")
    ] = None,
    dtmf: Annotated[
        str, typer.Option(metavar="DIGITS", help="Sent after the answer; w waits half a second.")
    ] = "",
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="Hang up so long after the answer.")
    ] = None,
    ring: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long for the answer.")] = 60.0,
    config: ConfigOption = None,
    api: ApiOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call somebody, and stay until the call has ended.

    The running server makes the call; without one, this command does, by itself. Ctrl-C hangs up.

    \b
    sipbridge dial sip:echo@127.0.0.1:5060 --play hello.wav --record heard.wav
    sipbridge dial +4930123456 --trunk carrier --from +4930999 --target local:demo
    sipbridge dial sip:ivr@pbx.example.com --dtmf ww1w42# --duration 20
    sipbridge dial alice --target tone:440 --config conf/examples/laptop.toml

    Exit code: 0 answered and ended well, 1 refused or failed (the SIP code and reason are on the
    standard error output), 2 wrong usage or configuration.
    """
    with _errors_shown():
        settings = load_config(config, os.environ)
        fields: dict[str, Any] = {
            "to": to,
            "target": target,
            "trunk": trunk,
            "from": from_,
            "headers": _parse_headers(header or []),
            "play": "" if play is None else str(play.absolute()),
            "record": "" if record is None else str(record.absolute()),
            "dtmf": dtmf,
            "ring_s": ring,
            "max_duration_s": duration or 0.0,
        }
        if play is not None:
            length_s = _sound_length_s(play)
            if duration is None:
                fields["max_duration_s"] = length_s + PLAY_TAIL_S
        if record is not None and not record.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {record.absolute().parent}", key="--record")
        try:
            body = schema.Dial(**fields)
        except ValidationError as error:
            raise _usage_error(error) from None
        call, is_left = asyncio.run(_dial(body, settings, api, as_json))
        if as_json and call is not None:
            _print_json(call)
    if is_left:
        raise typer.Exit(130)
    reason = None if call is None else call.end
    if call is None or reason is None:
        raise typer.Exit(1)
    if not _ended_well(call):
        _fail(str(CallError(reason.to_reason())), 1)


def _ended_well(call: schema.Call) -> bool:
    """It was answered, and somebody or something that was asked for ended it."""
    if call.end is None or call.seconds <= 0:
        return False
    return call.end.kind in (
        EndKind.HANGUP,
        EndKind.MAX_DURATION,
        EndKind.ALONE,
        EndKind.CHANNEL_CLOSED,
        EndKind.TRANSFERRED,
    )


def _parse_headers(texts: Sequence[str]) -> dict[str, str]:
    headers = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} has no =; expected NAME=VALUE", key="--header")
        headers[name] = value
    return headers


def _sound_length_s(path: Path) -> float:
    import soundfile

    try:
        with path.open("rb") as file:
            return float(soundfile.info(file).duration)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", key="--play") from None
    except soundfile.SoundFileError:
        raise ConfigError(f"{path} is no sound file that can be read", key="--play") from None


_OPTIONS = {
    "to": "TO",
    "headers": "--header",
    "ring_s": "--ring",
    "max_duration_s": "--duration",
}


def _usage_error(error: ValidationError) -> ConfigError:
    item = error.errors(include_url=False, include_input=False)[0]
    field = str(item["loc"][0])
    return ConfigError(item["msg"].removeprefix("Value error, "), key=_OPTIONS.get(field, f"--{field}"))


class _Dialer(Protocol):
    """What a dial needs: `ApiClient` has it, and `_OwnCalls`."""

    async def dial(self, body: schema.Dial) -> str: ...
    async def get(self, call_id: str) -> schema.Call: ...
    async def hangup(self, call_id: str) -> None: ...


class _OwnCalls:
    """The calls of an App in this process."""

    def __init__(self, app: "App") -> None:
        self._calls = app.calls

    async def dial(self, body: schema.Dial) -> str:
        return await self._calls.dial(body.to_request())

    async def get(self, call_id: str) -> schema.Call:
        return schema.Call.from_view(await self._calls.get(call_id))

    async def hangup(self, call_id: str) -> None:
        await self._calls.hangup(call_id)


async def _dial(
    body: schema.Dial, config: Config, api: str | None, is_quiet: bool
) -> tuple[schema.Call | None, bool]:
    """The call once it has ended, and whether the user left it before that."""
    stops = _Stops()
    async with contextlib.AsyncExitStack() as stack:
        calls: _Dialer
        try:
            calls = await stack.enter_async_context(_open_api(config, api))
        except (NoServerError, TokenError) as error:
            if api is not None:
                raise
            if isinstance(error, TokenError):
                _note(f"{error}; calling without it")
            calls = await stack.enter_async_context(_own_calls(body, config))
        call_id = await calls.dial(body)
        return await _follow(calls, call_id, stops, _Progress(is_quiet))


@contextlib.asynccontextmanager
async def _own_calls(body: schema.Dial, config: Config) -> "Any":
    if body.trunk and body.trunk not in [trunk.name for trunk in config.trunk]:
        raise ConfigError(
            f"there is no trunk {body.trunk!r}; with no server running, --config FILE tells of trunks",
            key="--trunk",
        )
    own = _config_for_one_call(config)
    app = _make_app(own, http=False)
    with LogWriter(own.log):
        await app.start()
        try:
            yield _OwnCalls(app)
        finally:
            await app.stop()


def _config_for_one_call(config: Config) -> Config:
    """Listens at ports that the system chooses, and takes no call that comes in."""
    listen = ["0.0.0.0:0"]
    if ports.find_problem("udp", "::", 0) is None:
        listen.append("[::]:0")
    tls = config.sip.tls
    sip = {"listen": tuple(listen), "tls": None if tls is None else tls.model_copy(update={"port": 0})}
    # What goes on is shown by the command itself.
    level = config.log.level if "level" in config.log.model_fields_set else "warning"
    return config.model_copy(
        update={
            "sip": config.sip.model_copy(update=sip),
            "rule": (),
            "log": config.log.model_copy(update={"level": level}),
        }
    )


async def _follow(
    calls: _Dialer, call_id: str, stops: _Stops, progress: "_Progress"
) -> tuple[schema.Call, bool]:
    """Looks at the call until it has ended; a first stop hangs up, a second leaves."""
    is_hung_up = False
    while True:
        call = await calls.get(call_id)
        progress.show(call)
        if call.state == "ended":
            return call, False
        if stops.asked.is_set() and not is_hung_up:
            is_hung_up = True
            with contextlib.suppress(LookupError):  # it ended by itself this moment
                await calls.hangup(call_id)
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S if call.state in ("active", "held") else SETUP_POLL_S):
                await (stops.insisted if is_hung_up else stops.asked).wait()
        if stops.insisted.is_set():
            progress.end_line()
            return call, True


class _Progress:
    """Shows a call: a line a change, and on a terminal one that moves."""

    _STATES: Mapping[str, str] = {
        "new": "calling",
        "ringing": "ringing",
        "early": "ringing, with sound",
        "active": "answered",
        "held": "held by the other side",
    }

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stdout.isatty()
        self._state = ""
        self._is_line_open = False

    def show(self, call: schema.Call) -> None:
        """Shows what is new in it."""
        if self._is_quiet:
            return
        if call.state != self._state:
            self.end_line()
            typer.echo(self._describe(call))
            sys.stdout.flush()
            self._state = call.state
        if self._is_terminal and call.state in ("active", "held"):
            typer.echo(f"\r\x1b[K{_meter_line(call)}", nl=False)
            sys.stdout.flush()
            self._is_line_open = True

    def end_line(self) -> None:
        """Leaves the moving line as it is."""
        if self._is_line_open:
            typer.echo()
            self._is_line_open = False

    def _describe(self, call: schema.Call) -> str:
        if call.state == "ended" and call.end is not None:
            detail = _clean(call.end.detail) or call.end.kind.replace("_", " ")
            return f"ended after {call.seconds:.1f} s by the {call.end.by}: {detail}"
        if call.state == "new":
            return f"calling {_clean(call.to)} (call {call.id})"
        if call.state == "active" and self._state == "held":
            return "resumed"
        text = self._STATES.get(call.state, call.state)
        return f"{text}, {call.codec}" if call.state == "active" else text


def _meter_line(call: schema.Call) -> str:
    minutes, seconds = divmod(int(call.seconds), 60)
    return (
        f"{minutes:>3}:{seconds:02}  from callee {_meter(call.capture_level_dbfs)}  "
        f"to callee {_meter(call.playback_level_dbfs)}  loss {call.loss_percent:.1f} %  "
        f"jitter {call.jitter_ms:.0f} ms  delay {call.delay_ms:.0f} ms"
    )


def _meter(level_dbfs: float) -> str:
    """A bar of ten steps of 6 dB, and the level."""
    steps = max(0, min(10, round((level_dbfs + 60) / 6)))
    number = f"{level_dbfs:4.0f} dB" if level_dbfs > -100 else " silent"
    return f"{'█' * steps:·<10}{number}"


# ---------------------------------------------------------------- calls of the running server


@cli.command()
def calls(api: ApiOption = None, as_json: JsonOption = False) -> None:
    """Show the calls of the running server.

    \b
    sipbridge calls
    sipbridge calls --json | jq '.calls[].id'
    """
    with _errors_shown():
        found = asyncio.run(_ask(api, lambda client: client.list()))
        if as_json:
            _print_json(schema.Calls(calls=found))
            return
        rows = [
            (
                call.id,
                call.direction,
                call.from_,
                call.to,
                call.target,
                call.state,
                call.codec or "-",
                f"{call.seconds:.0f} s",
                f"{call.loss_percent:.1f} %",
                f"{call.jitter_ms:.0f} ms",
            )
            for call in found
        ]
        headings = ("ID", "DIRECTION", "FROM", "TO", "TARGET", "STATE", "CODEC", "TIME", "LOSS", "JITTER")
        typer.echo(_table(headings, rows) if rows else "no calls")


@cli.command()
def hangup(call_id: CallId, api: ApiOption = None) -> None:
    """Hang up a call of the running server.

    \b
    sipbridge hangup 5f2c9e0a1b7d
    """
    with _errors_shown():
        asyncio.run(_ask(api, lambda client: client.hangup(call_id)))


@cli.command()
def rebridge(
    call_id: CallId,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The next channel, as local:demo.")],
    api: ApiOption = None,
) -> None:
    """Take a call of the running server to another channel; the telephone stays up.

    \b
    sipbridge rebridge 5f2c9e0a1b7d agora:sales
    """
    with _errors_shown():
        asyncio.run(_ask(api, lambda client: client.rebridge(call_id, target)))


@cli.command()
def dtmf(
    call_id: CallId,
    digits: Annotated[str, typer.Argument(metavar="DIGITS", help="0-9, A-D, *, #; w waits half a second.")],
    api: ApiOption = None,
) -> None:
    """Send DTMF digits into a call of the running server, to the telephone.

    \b
    sipbridge dtmf 5f2c9e0a1b7d 1w42#
    """
    with _errors_shown():
        asyncio.run(_ask(api, lambda client: client.send_dtmf(call_id, digits)))


@cli.command()
def transfer(
    call_id: CallId,
    to: Annotated[
        str, typer.Argument(metavar="TO", help="A sip: URI, or a number at the telephone's server.")
    ],
    api: ApiOption = None,
) -> None:
    """Send the telephone of a call elsewhere (REFER); the call ends once it is there.

    \b
    sipbridge transfer 5f2c9e0a1b7d 200
    sipbridge transfer 5f2c9e0a1b7d sip:200@pbx.example.com
    """
    with _errors_shown():
        asyncio.run(_ask(api, lambda client: client.transfer(call_id, to)))


@cli.command()
def rooms(api: ApiOption = None, as_json: JsonOption = False) -> None:
    """Show the rooms of the running server, and the calls in them."""
    with _errors_shown():
        found = asyncio.run(_ask(api, lambda client: client.rooms()))
        if as_json:
            _print_json(schema.Rooms(rooms=found))
            return
        rows = [(room.name, f"{room.rate_hz} Hz", " ".join(room.members)) for room in found]
        typer.echo(_table(("ROOM", "RATE", "CALLS"), rows) if rows else "no rooms")


@cli.command()
def link(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="As in local:ROOM.")],
    hours: Annotated[float, typer.Option(min=1 / 60, max=720, help="For how long it is valid.")] = 1.0,
    api: ApiOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a link by which a browser joins a room of the running server.

    Whoever has it can hear the room and be heard there until it expires, and nothing else.

    \b
    sipbridge link demo
    sipbridge link demo --hours 24
    """
    with _errors_shown():
        made = asyncio.run(_ask(api, lambda client: client.link(room, round(hours * 3600))))
        if as_json:
            _print_json(made)
        else:
            typer.echo(made.url)


# ---------------------------------------------------------------- proxy


@cli.command()
def proxy(
    model_url: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible, without /chat/completions.")
    ],
    model: Annotated[str, typer.Option(help="Its name there.")] = "gpt-audio",
    token: Annotated[
        str, typer.Option(envvar="SIPBRIDGE_MODEL_TOKEN", help="Sent as a bearer token.", show_default=False)
    ] = "",
    voice: Annotated[str, typer.Option(help="The voice that it answers with.")] = "alloy",
    prompt: Annotated[str, typer.Option(help="Its instructions, where a call brings none.")] = "",
    model_rate: Annotated[int, typer.Option(metavar="HZ", help="The rate of its answers.")] = 24000,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:8765",
    gather: Annotated[
        str, typer.Option(metavar="vad|chunk", help="What is sent: utterances, or pieces of one length.")
    ] = "vad",
    chunk_duration_s: Annotated[
        float, typer.Option(metavar="S", min=0.1, max=30.0, help="The length of such a piece.")
    ] = 1.0,
) -> None:
    """Run the audio proxy: an agent whose words come from a speech model.

    Calls reach it by the target ws://HOST:PORT. Ctrl-C and SIGTERM end it.

    \b
    sipbridge proxy --model-url http://127.0.0.1:8000/v1 --model my-model
    """
    with _errors_shown():
        try:
            host, port = split_host_port(listen)
        except ValueError as error:
            raise ConfigError(str(error), key="--listen") from None
        if gather not in ("vad", "chunk"):
            raise ConfigError(f"{gather!r} is neither vad nor chunk", key="--gather")
        if port is None:
            raise ConfigError(f"{listen!r} has no port", key="--listen")
        if not model_url.startswith(("http://", "https://")):
            raise ConfigError(f"{model_url!r} is no URL: expected http:// or https://", key="--model-url")
        from sipbridge.proxy.model import Model
        from sipbridge.proxy.server import ProxySettings

        settings = ProxySettings(
            chunk_duration_s=chunk_duration_s if gather == "chunk" else None,
            model_rate_hz=model_rate,
            prompt=prompt,
        )
        with LogWriter(LogConfig()):
            asyncio.run(_proxy(host, port, Model(model_url, model=model, token=token, voice=voice), settings))


async def _proxy(host: str, port: int, model: "Model", settings: "ProxySettings") -> None:
    from sipbridge.proxy.server import run_proxy

    stops = _Stops()
    try:
        async with run_proxy(host, port, model, settings) as port:
            typer.echo(f"the audio proxy is listening at ws://{join_host_port(host, port)}")
            sys.stdout.flush()
            await stops.asked.wait()
    except OSError as error:
        raise ConfigError(f"cannot listen: {error.strerror or error}", key="--listen") from None
    finally:
        await model.close()


# ---------------------------------------------------------------- version


@cli.command()
def bench(
    target: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="A bridge that runs, as in 'sip:bench{room}@192.0.2.1'; two calls meet in each {room}. "
            "Without it: one of its own on this machine.",
        ),
    ] = None,
    max_calls: Annotated[int, typer.Option(min=2, max=1000, help="Try no more than so many.")] = 800,
    seconds: Annotated[float, typer.Option(min=1, help="Measure so long with each number of calls.")] = 10.0,
    p99_limit: Annotated[
        float, typer.Option(metavar="MS", help="The delay that 99 of 100 sounds may have.")
    ] = 60.0,
    rtp_port: Annotated[
        int, typer.Option(metavar="PORT", min=1024, max=65000, help="The callers' first; two for each.")
    ] = 12000,
    as_json: JsonOption = False,
) -> None:
    """Measure how many calls this machine carries before quality falls.

    Calls a bridge with more and more telephones of its own, in G.711, and listens for what they say. It
    stops where something is lost, not heard or late. The callers run on this machine too and take their
    share of it, about a tenth of a core for 100 calls. The first time it compiles them (g++).

    \b
    sipbridge bench
    sipbridge bench --max-calls 200 --json
    sipbridge bench --target 'sip:bench{room}@192.0.2.1:5060'

    Exit code: 0 when any number of calls was good, 1 when none was or it could not be measured.
    """
    from sipbridge.loadtest import capacity
    from sipbridge.loadtest.measure import Load, machine

    with _errors_shown():
        _raise_open_files(4 * max_calls + 200)
        rate = _OWN_RATE if target is None else _OTHER_RATE
        about = machine()
        if not as_json:
            typer.echo(f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}")
            typer.echo(_BENCH_HEAD)
        steps = capacity.measure(
            capacity.sizes_to(max_calls),
            load=Load(seconds=seconds, rtp_port=rtp_port, rate=rate),
            p99_limit_ms=p99_limit,
            target=target,
            show=lambda step: None if as_json else _show_step(step),
        )
    good = max((step.calls for step in steps if not step.problems), default=0)
    if as_json:
        _print_json(
            {"machine": about, "target": target, "calls": good, "steps": [step.as_json() for step in steps]}
        )
    elif not good:
        typer.echo("Not even the smallest number of calls was good.")
    elif steps[-1].problems:
        typer.echo(f"This machine carries {good} calls; at {steps[-1].calls} quality falls.")
    else:
        typer.echo(f"This machine carries {good} calls, and maybe more: --max-calls.")
    if not good:
        raise typer.Exit(1)


# Calls a second. Bridges limit what comes from one address, and against another bridge all callers have one.
_OWN_RATE, _OTHER_RATE = 40.0, 10.0
_BENCH_HEAD = (
    f"{'CALLS':>5}  {'DELAY MS P50':>12}  {'P99':>5}  {'SET-UP P95':>10}  {'% CORE/CALL':>11}  MB/CALL"
)


def _show_step(step: "Step") -> None:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    delay, setup = step.delay_ms, step.setup_ms
    typer.echo(
        f"{step.calls:>5}  {number(delay.get('p50'), 1):>12}  {number(delay.get('p99'), 1):>5}  "
        f"{number(setup.get('p95'), 1):>10}  {number(step.percent_core_a_call, 3):>11}  "
        f"{number(step.mb_a_call, 2):>7}  {'; '.join(step.problems) or 'good'}"
    )
    sys.stdout.flush()


@cli.command()
def version(as_json: JsonOption = False) -> None:
    """Show the version."""
    if as_json:
        _print_json({"sipbridge": __version__, "python": platform.python_version()})
    else:
        typer.echo(f"sipbridge {__version__} (Python {platform.python_version()})")


def _open_api(config: Config, api: str | None) -> ApiClient:
    return ApiClient(api or api_url(config.http.listen), find_token(config))


async def _ask[T](api: str | None, question: Any) -> Any:
    async with _open_api(load_config(None, os.environ), api) as client:
        return await question(client)


# ---------------------------------------------------------------- output


def _print_json(value: Any) -> None:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True)
    typer.echo(json.dumps(value, indent=2))
    sys.stdout.flush()


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cleaned = [headings, *([_clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cleaned) for column in range(len(headings))]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cleaned
    )
    return "\n".join(line.rstrip() for line in lines)


def _clean(text: str) -> str:
    """What strangers wrote cannot steer the terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _note(text: str) -> None:
    typer.echo(f"sipbridge: {_clean(text)}", err=True)


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """Errors that people can do something about end the command with a line for each."""
    try:
        yield
    except ConfigError as error:
        _fail(str(error), 2)
    except NoServerError as error:
        _fail(f"{error}; `sipbridge serve` starts one, --api names another", 1)
    except (SipbridgeError, LookupError) as error:
        _fail(str(error.args[0] if isinstance(error, LookupError) and error.args else error), 1)


def _fail(text: str, code: int) -> NoReturn:
    for line in text.splitlines():
        typer.echo(f"sipbridge: {_clean(line)}", err=True)
    raise typer.Exit(code)
