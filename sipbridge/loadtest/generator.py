# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator, native/load.cpp, from Python: built when first needed, run as a process of its own."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from sipbridge.errors import SipbridgeError

SOURCE = Path(__file__).with_name("native")
# What a codec needs beside the compiler: a pkg-config module, and Debian's package of it.
LIBRARIES = {"g722": ("spandsp", "libspandsp-dev"), "opus": ("opus", "libopus-dev")}


class LoadtestError(SipbridgeError):
    """The measurement cannot be made; the text says why, and what helps."""


def build(codecs: Iterable[str] = ()) -> Path:
    """The compiled generator with these codecs (G.711 is always in), kept in the user's cache."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise LoadtestError("no C++ compiler, which the load generator needs; on Debian: apt-get install g++")
    flags = ["-std=c++17", "-O2", "-ftree-vectorize", "-ffast-math"]
    libraries = []
    for name in sorted({codec.lower() for codec in codecs} & set(LIBRARIES)):
        flags.append(f"-DLOAD_{name.upper()}")
        libraries += _library_flags(name)
    parts = [compiler, *flags, *libraries, *(path.read_text() for path in sorted(SOURCE.iterdir()))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    program = platformdirs.user_cache_path("sipbridge") / "loadtest" / f"load-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(".new")
        command = [compiler, *flags, "-o", str(fresh), str(SOURCE / "load.cpp"), *libraries]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise LoadtestError(f"the load generator does not compile:\n{made.stderr}")
        fresh.rename(program)
    return program


def _library_flags(codec: str) -> list[str]:
    module, package = LIBRARIES[codec]
    if shutil.which("pkg-config") is None:
        raise LoadtestError(f"no pkg-config, which finds the library for {codec}; on Debian: pkg-config")
    found = subprocess.run(
        ["pkg-config", "--cflags", "--libs", module], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise LoadtestError(f"callers with {codec} need the library {module}; on Debian: {package}")
    return found.stdout.split()


def run(
    arguments: Iterable[str],
    moments: Mapping[str, Callable[[], None]],
    *,
    codecs: Iterable[str] = (),
) -> dict[str, Any]:
    """Runs it; calls `moments[name]` when it says that it is there (answered, measuring, measured, ended)."""
    with subprocess.Popen([build(codecs), *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    result: dict[str, Any] = json.loads(line)
                    return result
                if (act := moments.get(line.strip())) is not None:
                    act()
        except BaseException:
            process.kill()
            raise
    raise LoadtestError("the load generator gave up")
