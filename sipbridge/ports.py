# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of this host: whether one can be listened at, and which program has it when not."""

import contextlib
import errno
import os
import socket
from typing import Literal

import psutil

from sipbridge.routing import join_host_port

PortKind = Literal["udp", "tcp"]


def open_socket(kind: PortKind, host: str, port: int) -> socket.socket:
    """A socket bound to the address (port 0: the system chooses); a TCP socket is not listening yet.

    `host` is an address or a name. OSError when it cannot be had, of which `explain` makes a sentence.
    """
    type_ = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    family, _, _, _, address = socket.getaddrinfo(host, port, type=type_, flags=socket.AI_PASSIVE)[0]
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, type_))
        if kind == "tcp":
            # Connections of a server that ended a moment ago do not hold its port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] is IPv6 alone; 0.0.0.0 with the same port is an address of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        if kind == "tcp":
            sock.listen(1024)  # only here a second listener at the same port is told
        stack.pop_all()
    return sock


def find_problem(kind: PortKind, host: str, port: int) -> str | None:
    """Why nothing can listen there at the moment; None when it can."""
    try:
        open_socket(kind, host, port).close()
    except OSError as error:
        return explain(error, kind, host, port)
    return None


def explain(error: OSError, kind: PortKind, host: str, port: int) -> str:
    """What an error of binding means, as in ``port 5060/udp is in use by asterisk (pid 812)``."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port}/{kind} is in use by {find_holder(kind, port)}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this host"
    if error.errno == errno.EACCES:
        return f"port {port}/{kind} may be opened by root alone; ports from 1024 up by everybody"
    if isinstance(error, socket.gaierror):
        return f"the name {host!r} is not known"
    return f"cannot listen at {join_host_port(host, port)}/{kind}: {error.strerror or error}"


def find_holder(kind: PortKind, port: int) -> str:
    """The program that has the port, as ``asterisk (pid 812)``; root alone sees those of other users."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind):
            listens = kind == "udp" or connection.status == psutil.CONN_LISTEN
            if connection.laddr and connection.laddr.port == port and listens and connection.pid:
                return f"{_program(connection.pid)} (pid {connection.pid})"
    return "another user's program" if os.geteuid() else "another program"


def _program(pid: int) -> str:
    """A name that people know a program by: of an interpreter, the script or module it runs."""
    process = psutil.Process(pid)
    name = process.name()
    with contextlib.suppress(psutil.Error):
        if name.startswith("python"):
            words = iter(process.cmdline()[1:])
            for word in words:
                if word == "-m":
                    return next(words, name)
                if word == "-c":
                    break
                if not word.startswith("-"):
                    return os.path.basename(word)
    return name
