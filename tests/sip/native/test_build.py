# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder of pjsua2: what it asks for, what it keeps, and what it says when it cannot go on."""

import base64
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from sipbridge.sip.native import build


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PJPROJECT_TARBALL", raising=False)
    monkeypatch.delenv("SIPBRIDGE_G729", raising=False)
    return tmp_path / "cache" / "sipbridge"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder, empty at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def add_program(folder: Path, name: str, script: str = "exit 0") -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def tarball(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"pjproject/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


# --- what the system lacks


def test_missing_compiler_says_what_to_run(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root, one message names what is missing and the one line that installs just that."""
    add_program(programs, "apt-get")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    needs = [
        build.Need("g++", "build-essential"),
        build.Need("make", "build-essential"),
        build.Need("stdio.h", "libc6-dev"),
        build.Need("nowhere/to/be_found.h", "libnowhere-dev"),
    ]
    with pytest.raises(build.BuildError) as caught:
        build.ensure(needs, "build pjsua2")
    assert str(caught.value) == (
        "missing to build pjsua2: g++, make, nowhere/to/be_found.h. Run this, then the same command again:\n"
        "  sudo apt-get install -y --no-install-recommends build-essential libnowhere-dev"
    )


def test_missing_compiler_without_apt(programs: Path) -> None:
    """Where there is no apt the packages are named, and nothing is tried."""
    assert list(programs.iterdir()) == []
    with pytest.raises(build.BuildError, match="missing to build pjsua2: swig") as caught:
        build.ensure([build.Need("swig", "swig")], "build pjsua2")
    assert "apt-get" not in str(caught.value)


def test_missing_packages_are_installed_by_root(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is missing is installed; a machine that knows no packages fetches their list first."""
    calls = tmp_path / "calls"
    add_program(programs, "env", 'shift; exec "$@"')
    add_program(
        programs,
        "apt-get",
        f'echo "$@" >>{calls}; if [ "$1" = update ]; then >{tmp_path}/known; exit; fi\n'
        f'[ -e {tmp_path}/known ] || exit 100\nprintf "#!/bin/sh\\n" >{programs}/swig; '
        f"/bin/chmod +x {programs}/swig",
    )
    monkeypatch.setattr("os.geteuid", lambda: 0)
    build.ensure([build.Need("swig", "swig"), build.Need("stdio.h", "libc6-dev")], "build pjsua2")
    install = "install -y --no-install-recommends swig"
    assert calls.read_text().splitlines() == [install, "update", install]


def test_nothing_is_installed_when_all_is_there(programs: Path) -> None:
    """A complete system is left alone."""
    add_program(programs, "swig")
    add_program(programs, "apt-get", "exit 1")
    build.ensure([build.Need("swig", "swig"), build.Need("stdio.h", "libc6-dev")], "build pjsua2")


def test_headers_are_found_where_the_compiler_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header in a folder of CPATH counts."""
    need = build.Need("own/thing.h", "libthing-dev")
    assert not need.is_present()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thing.h").touch()
    monkeypatch.setenv("CPATH", f"/nowhere:{tmp_path}")
    assert need.is_present()


def test_g729_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option adds its package and leaves out the flag that excludes it."""
    assert "libbcg729-dev" not in {need.package for need in build.build_needs()}
    assert "--disable-bcg729" in build.configure_flags()
    monkeypatch.setenv("SIPBRIDGE_G729", "1")
    assert "libbcg729-dev" in {need.package for need in build.build_needs()}
    assert "--disable-bcg729" not in build.configure_flags()


# --- the source of pjproject


def test_named_tarball_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there is named, with the variable that named it."""
    monkeypatch.setenv("PJPROJECT_TARBALL", str(tmp_path / "none.tar.gz"))
    with pytest.raises(build.BuildError, match=r"PJPROJECT_TARBALL: .*none\.tar\.gz: No such file"):
        build.source_tarball()


def test_named_tarball_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tarball has to be named once: later builds find it in the cache, the latest named first."""
    first = tmp_path / "first.tar.gz"
    first.write_bytes(b"first")
    second = tmp_path / "second.tar.gz"
    second.write_bytes(b"second")
    for path in (first, second):
        monkeypatch.setenv("PJPROJECT_TARBALL", str(path))
        build.source_tarball()
        path.unlink()
    monkeypatch.delenv("PJPROJECT_TARBALL")
    assert build.source_tarball().read_bytes() == b"second"


def test_tarball_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file that is no archive nor an archive of something else is built."""
    monkeypatch.setenv("PJPROJECT_TARBALL", str(tarball(tmp_path / "other.tar.xz", {"README": "no"})))
    with pytest.raises(build.BuildError, match=r"other\.tar\.xz is not a pjproject source tarball"):
        build.pjproject()
    (tmp_path / "text").write_text("no archive")
    monkeypatch.setenv("PJPROJECT_TARBALL", str(tmp_path / "text"))
    with pytest.raises(build.BuildError, match="unpacking"):
        build.pjproject()


def test_pjproject_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A version before 2.17 is refused with where to get one that does; nothing of it stays."""
    version = "export PJ_VERSION_MAJOR  := 2\nexport PJ_VERSION_MINOR  := 15\nexport PJ_VERSION_REV    := 1\n"
    files = {"version.mak": version, "pjsip-apps/src/swig/pjsua2.i": ""}
    monkeypatch.setenv("PJPROJECT_TARBALL", str(tarball(tmp_path / "old.tar.xz", files)))
    with pytest.raises(build.BuildError, match=r"pjproject 2\.15\.1 is too old(.|\n)*PJPROJECT_TARBALL="):
        build.pjproject()
    assert not (cache / "pjproject").exists()
    assert list((cache / "tmp").iterdir()) == []


def test_mirror_is_the_systems_own(programs: Path) -> None:
    """The first mirror that can be fetched from is taken."""
    add_program(programs, "apt-get", "echo cdrom://disc; echo http://mirror.example/debian")
    assert build.debian_mirror() == "http://mirror.example/debian"


def test_no_debian_no_mirror(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system one message says what to get and what to run."""
    monkeypatch.setattr(build, "os_release", lambda: ["ID=ubuntu"])
    add_program(programs, "apt-get")
    with pytest.raises(build.BuildError, match=r"release tarball(.|\n)*PJPROJECT_TARBALL=.* make setup"):
        build.debian_mirror()
    (programs / "apt-get").unlink()
    with pytest.raises(build.BuildError, match="PJPROJECT_TARBALL="):
        build.debian_mirror()


def test_mirror_of_a_fresh_debian(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt that never fetched its lists does so first, or says what to run where it may not."""
    monkeypatch.setattr(build, "os_release", lambda: ["ID=debian"])
    add_program(
        programs,
        "apt-get",
        f'if [ "$1" = update ]; then >{tmp_path}/known; fi\n'
        f'if [ "$1" = indextargets ] && [ -e {tmp_path}/known ]; then echo http://mirror.example/debian; fi',
    )
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(build.BuildError, match=r"\n  sudo apt-get update$"):
        build.debian_mirror()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert build.debian_mirror() == "http://mirror.example/debian"


# --- what is kept


@pytest.fixture
def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set of sources in place of the real ones."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "clock.cpp").write_text('#include <vector>\n#include "clock.hpp"\n')
    (folder / "clock.hpp").write_text('#pragma once\n  # include "queue.hpp"\n')
    (folder / "queue.hpp").write_text("#pragma once\n")
    (folder / "gate.cpp").write_text('#include "gate.hpp"\n// #include "queue.hpp"\n')
    (folder / "gate.hpp").write_text("#pragma once\n")
    (folder / "pjsua2_sipbridge.i").write_text('%module pjsua2\n%include "pjsua2.i"\n%include "clock.hpp"\n')
    monkeypatch.setattr(build, "NATIVE_DIR", folder)
    monkeypatch.setattr(build, "INTERFACE", folder / "pjsua2_sipbridge.i")
    return folder


def test_a_header_reaches_only_what_includes_it(native: Path) -> None:
    """A changed file changes the keys of the files that include it, however deep, and of no other."""
    files = ("clock.cpp", "gate.cpp", "pjsua2_sipbridge.i")
    before = [build.content_key(native / name) for name in files]
    (native / "gate.hpp").write_text("#pragma once\nint gate();\n")
    gate_changed = [build.content_key(native / name) for name in files]
    assert [a == b for a, b in zip(before, gate_changed, strict=True)] == [True, False, True]
    (native / "queue.hpp").write_text("#pragma once\nint queue();\n")
    queue_changed = [build.content_key(native / name) for name in files]
    assert [a == b for a, b in zip(gate_changed, queue_changed, strict=True)] == [False, True, False]


def test_keys_are_of_content_not_of_place(native: Path, tmp_path: Path) -> None:
    """A second checkout finds what the first built."""
    before = build.content_key(native / "clock.cpp")
    copy = native.rename(tmp_path / "elsewhere")
    assert build.content_key(copy / "clock.cpp") == before


@pytest.mark.parametrize("changed", ["clock.cpp", "gate.hpp", "pjsua2_sipbridge.i"])
def test_wheel_is_of_all_sources(native: Path, changed: str) -> None:
    """Any changed source gives another wheel; the same sources give the same."""
    pj = build.Pjproject(native, "2.17", "key", (), ())
    before = build.wheel_entry(pj)
    assert build.wheel_entry(pj) == before
    assert before.name.startswith("pjsua2-2.17+sipbridge.")
    with (native / changed).open("a") as file:
        file.write("// changed\n")
    assert build.wheel_entry(pj) != before
    other = build.Pjproject(native, "2.17", "other key", (), ())
    assert build.wheel_entry(other) != build.wheel_entry(pj)


def test_an_unchanged_file_is_compiled_once(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the object comes from the cache; a failing file leaves none there."""
    first = build.compile_object(native / "clock.cpp", ["-O0"], ["compiler"])
    monkeypatch.setattr(build, "run", lambda *_: pytest.fail("compiled again"))
    assert build.compile_object(native / "clock.cpp", ["-O0"], ["compiler"]) == first
    monkeypatch.undo()


def test_compile_error_is_shown(native: Path, cache: Path) -> None:
    """A failed step names its log and shows the end of it; nothing half made is kept."""
    (native / "gate.cpp").write_text("int gate() { return nonsense; }\n")
    with pytest.raises(build.BuildError) as caught:
        build.compile_all([(native / "gate.cpp", ["-O0"]), (native / "clock.cpp", ["-O0"])], ["compiler"])
    log = cache / "logs" / "compile-gate.log"
    assert str(caught.value).startswith(f"compiling gate.cpp failed (exit 1). The last lines of {log}:\n")
    assert "nonsense" in str(caught.value)
    assert "nonsense" in log.read_text()
    assert not list((cache / "objects").glob("gate*"))


def test_the_end_of_a_long_log_is_shown() -> None:
    """Twenty lines of output are shown."""
    with pytest.raises(build.BuildError) as caught:
        build.run(["sh", "-c", "seq 100; exit 7"], "counting", "counting")
    assert str(caught.value).splitlines()[1:] == [str(number) for number in range(81, 101)]


def test_what_an_interrupted_build_left_is_removed(cache: Path) -> None:
    """The next build clears the scratch folder, and only that."""
    left = cache / "tmp" / "left"
    left.mkdir(parents=True)
    (left / "object.o").touch()
    (cache / "objects").mkdir()
    (cache / "objects" / "done.o").touch()
    with build.locked():
        assert not left.exists()
    assert (cache / "objects" / "done.o").exists()


def test_two_builds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first is done, and says so."""
    order: list[str] = []
    waiting = threading.Event()

    def hear(text: str) -> None:
        order.append(text)
        waiting.set()

    def second() -> None:
        with build.locked():
            order.append("second")

    monkeypatch.setattr(build, "say", hear)
    with build.locked():
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["waiting for another build to finish ...", "first", "second"]


def test_wheel_is_what_pip_expects(tmp_path: Path) -> None:
    """Name, metadata and record agree; the record's sums are those of the files."""
    module = tmp_path / "pjsua2.py"
    module.write_text("x = 1\n")
    name = f"pjsua2-2.17+sipbridge.12345678-{build.wheel_tag()}.whl"
    build.write_wheel(tmp_path / "packed", name, [module])
    (tmp_path / "packed").rename(tmp_path / name)
    info = "pjsua2-2.17+sipbridge.12345678.dist-info"
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert f"Tag: {build.wheel_tag()}\n" in archive.read(f"{info}/WHEEL").decode()
        assert "Version: 2.17+sipbridge.12345678\n" in archive.read(f"{info}/METADATA").decode()
        rows = list(csv.reader(io.StringIO(archive.read(f"{info}/RECORD").decode())))
        assert {row[0] for row in rows} == set(archive.namelist())
        for inside, checksum, size in rows:
            if not inside.endswith("RECORD"):
                data = archive.read(inside)
                wanted = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
                assert (checksum, size) == (f"sha256={wanted}", str(len(data)))
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(tmp_path / name)], check=True)
    assert (target / "pjsua2.py").read_text() == "x = 1\n"


# --- as a program


def test_program_reports_in_one_message(tmp_path: Path) -> None:
    """What cannot go on ends with one message and no traceback."""
    command = [sys.executable, build.__file__, "--venv", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sipbridge: {tmp_path}/none is no virtual environment\n"
