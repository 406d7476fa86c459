# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator `load.cpp` from Python: built when its source changed, run as a process of its own."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

SOURCE = Path(__file__).with_name("load.cpp")


def build() -> Path:
    """The compiled generator, kept in the user's cache by the hash of its source."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise SystemExit("bench: no C++ compiler; on Debian: sudo apt-get install g++")
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    program = platformdirs.user_cache_path("sipbridge") / "bench" / f"load-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(".new")
        subprocess.run([compiler, "-std=c++17", "-O2", "-o", fresh, SOURCE], check=True)
        fresh.rename(program)
    return program


def run(arguments: list[str], moments: dict[str, Callable[[], None]]) -> dict[str, Any]:
    """Runs it; calls `moments[name]` when it says that it is there (answered, measuring, measured, ended)."""
    with subprocess.Popen([build(), *arguments], stdout=subprocess.PIPE, text=True) as process:
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
    raise SystemExit("bench: the load generator gave up")
