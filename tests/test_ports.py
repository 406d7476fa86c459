# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a port can be had, and who has it."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from sipbridge.ports import PortKind, explain, find_holder, find_problem, open_socket
from tests.support.ports import free_port


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_free_port_is_no_problem(kind: PortKind) -> None:
    port = free_port()
    assert find_problem(kind, "127.0.0.1", port) is None
    open_socket(kind, "127.0.0.1", port).close()  # looking took nothing


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_taken_port_names_its_holder(kind: PortKind) -> None:
    with open_socket(kind, "127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        problem = find_problem(kind, "0.0.0.0", port)
    assert problem is not None
    assert problem.startswith(f"port {port}/{kind} is in use by ")
    assert f"(pid {os.getpid()})" in problem


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (
            [
                "-c",
                "import time, socket; s = socket.create_server(('127.0.0.1', {port})); print('up'); input()",
            ],
            "python",
        ),
        (["-m", "http.server", "{port}", "-b", "127.0.0.1"], "http.server"),
    ],
    ids=["code", "module"],
)
def test_program_of_an_interpreter_is_named(arguments: list[str], name: str) -> None:
    port = free_port()
    command = [sys.executable, "-u", *(text.replace("{port}", str(port)) for text in arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        try:
            other.stdout.readline()  # it listens
            holder = find_holder("tcp", port)
        finally:
            other.kill()
    assert name in holder
    assert holder.endswith(f"(pid {other.pid})")


def test_address_of_another_host_is_explained() -> None:
    assert find_problem("udp", "192.0.2.1", 5060) == "192.0.2.1 is no address of this host"


def test_other_errors_are_explained() -> None:
    assert "root" in explain(OSError(errno.EACCES, "Permission denied"), "tcp", "0.0.0.0", 443)
    assert explain(socket.gaierror(-2, "unknown"), "tcp", "nowhere", 80) == "the name 'nowhere' is not known"
    assert explain(OSError(errno.ENOBUFS, "No buffer space"), "udp", "::1", 5060) == (
        "cannot listen at [::1]:5060/udp: No buffer space"
    )
