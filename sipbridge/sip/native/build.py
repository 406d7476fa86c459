# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the ``pjsua2`` module: pjproject's pjsua2 together with the C++ classes of this folder.

    python sipbridge/sip/native/build.py --venv .venv        build what is missing, install it there
    python sipbridge/sip/native/build.py                     build what is missing, print the wheel's path
    python sipbridge/sip/native/build.py --test [NAME ...]   run the C++ tests of tests/

Runs on the standard library alone. Everything is kept under ``$XDG_CACHE_HOME/sipbridge`` by a hash of
what went into it (sources, limits, flags, compiler, Python), so that a second checkout builds nothing and
a changed file rebuilds only what depends on it:

    sources/    pjproject tarballs             swig/       generated wrappers
    pjproject/  compiled static libraries      objects/    compiled C++ files
    programs/   C++ tests                      wheels/     the result
    logs/       output of the last run of each step

pjproject comes from the tarball that ``PJPROJECT_TARBALL`` names, else from the cache, else from Debian's
source package ``asterisk`` (which carries it as a component), fetched with signatures checked through an
apt configuration of our own. ``SIPBRIDGE_G729=1`` adds G.729 (bcg729, GPL-3.0).
"""

import argparse
import base64
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

NATIVE_DIR = Path(__file__).resolve().parent
INTERFACE = NATIVE_DIR / "pjsua2_sipbridge.i"
OLDEST_PJPROJECT = (2, 17)

CONFIGURE_FLAGS = (
    "--with-external-srtp",
    "--with-external-speex",
    "--with-external-gsm",
    "--enable-speex-resample",
    "--enable-epoll",
    "--disable-sound",
    "--disable-video",
    "--disable-sdl",
    "--disable-ffmpeg",
    "--disable-v4l2",
    "--disable-openh264",
    "--disable-vpx",
    "--disable-libyuv",
    "--disable-libwebrtc",
    "--disable-upnp",
    "--disable-g7221-codec",
    "--disable-ilbc-codec",
    "--disable-silk",
    "--disable-opencore-amr",
    "--disable-lyra",
)
PJPROJECT_CFLAGS = "-O3 -fPIC -DNDEBUG"
CXX_STANDARD = "-std=c++20"
MODULE_CXXFLAGS = (CXX_STANDARD, "-O2", "-fPIC", "-DNDEBUG", "-pthread", "-Wall", "-Wextra")
# With -fastproxy a method is the C function itself, without a Python function around it.
SWIG_OPTIONS = ("-c++", "-python", "-threads", "-fastproxy", "-w312")
# The generated wrapper is 160,000 lines run once a control call: unoptimised it compiles in half the time
# and costs 17 ns more a call.
WRAPPER_CXXFLAGS = (CXX_STANDARD, "-O0", "-fPIC", "-DNDEBUG", "-pthread", "-w")
# Tests keep their assertions; pjproject's headers keep the layout they were built with.
TEST_CXXFLAGS = (CXX_STANDARD, "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", "-Wall", "-Wextra")
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
RUN_FIRST = "Run this, then the same command again:\n"
# Objects, programs and wrappers that no build has asked for in this time are deleted.
KEEP_UNUSED_S = 14 * 24 * 3600


class BuildError(Exception):
    """What the user reads when a build cannot go on: the cause and, where there is one, the line to run."""


@dataclasses.dataclass(frozen=True)
class Need:
    """Something the system must have, and the Debian package that brings it."""

    name: str  # a program ("swig"), a C header ("opus/opus.h") or an absolute path
    package: str

    def is_present(self) -> bool:
        if self.name.startswith("/"):
            return Path(self.name).exists()
        if self.name.endswith(".h"):
            return any((folder / self.name).exists() for folder in header_folders())
        return shutil.which(self.name) is not None


def header_folders() -> list[Path]:
    """Where the compiler looks for system headers; asked without one, for it may be what is missing."""
    named = [os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")]
    folders = [Path(folder) for value in named for folder in value.split(":") if folder]
    include = Path("/usr/include")
    return [*folders, Path("/usr/local/include"), include, *include.glob("*-linux-*")]


def build_needs() -> list[Need]:
    """What compiling takes."""
    needs = [
        Need("g++", "build-essential"),
        Need("make", "build-essential"),
        Need("stdlib.h", "build-essential"),
        Need("swig", "swig"),
        Need("xz", "xz-utils"),
        Need("openssl/ssl.h", "libssl-dev"),
        Need("opus/opus.h", "libopus-dev"),
        Need("srtp2/srtp.h", "libsrtp2-dev"),
        Need("speex/speex.h", "libspeex-dev"),
        Need("speex/speex_resampler.h", "libspeexdsp-dev"),
        Need("gsm.h", "libgsm1-dev"),
        Need("uuid/uuid.h", "uuid-dev"),
    ]
    if with_g729():
        needs.append(Need("bcg729/encoder.h", "libbcg729-dev"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    needs.append(Need(f"{sysconfig.get_path('include')}/Python.h", f"{version}-dev"))
    if importlib.util.find_spec("ensurepip") is None:
        needs.append(Need("/usr/lib/" + version + "/ensurepip", f"{version}-venv"))
    return needs


def test_needs() -> list[Need]:
    """The peers and recordings that the tests use."""
    return [
        Need("sipp", "sip-tester"),
        Need("baresip", "baresip-core"),
        Need("tshark", "tshark"),
        Need("openssl", "openssl"),
        Need("espeak-ng", "espeak-ng"),
        Need("chromium", "chromium"),
        Need("npm", "npm"),
        Need("/usr/share/asterisk/sounds/en_US_f_Allison/demo-congrats.wav", "asterisk-core-sounds-en-wav"),
        Need("/usr/share/asterisk/sounds/en", "asterisk-core-sounds-en"),  # a link to the above
    ]


def ensure(needs: Sequence[Need], purpose: str) -> None:
    """Installs what is missing where that is allowed, else says in one message what to run."""
    missing = [need for need in needs if not need.is_present()]
    if not missing:
        return
    packages = sorted({need.package for need in missing})
    names = ", ".join(need.name for need in missing)
    if shutil.which("apt-get") is None:
        raise BuildError(
            f"missing to {purpose}: {names}.\n"
            "Install what your system calls these Debian packages, then run the same command again:\n"
            f"  {' '.join(packages)}"
        )
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    root = as_root()
    if root is None:
        raise BuildError(f"missing to {purpose}: {names}. {RUN_FIRST}  sudo {shlex.join(install)}")
    step(1, f"installing {' '.join(packages)} ...")
    quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive"]
    try:
        run([*quiet, *install], "apt-install", "installing system packages")
    except BuildError:
        # A fresh or long unused machine knows no packages, or old ones that the mirror no longer has.
        run([*quiet, "apt-get", "update"], "apt-update", "updating the list of packages")
        run([*quiet, *install], "apt-install", "installing system packages")
    still = [need.name for need in needs if not need.is_present()]
    if still:
        raise BuildError(f"still missing after installing {' '.join(packages)}: {', '.join(still)}")


def as_root() -> list[str] | None:
    """What to put before a command to run it as root without a question; None where that cannot be."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    return None


def with_g729() -> bool:
    return os.environ.get("SIPBRIDGE_G729", "") not in ("", "0")


# --- cache and processes


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sipbridge"


def say(text: str) -> None:
    print(text, flush=True)


def step(number: int, text: str) -> None:
    say(f"[{number}/6] {text}")


def digest(parts: Iterable[str | bytes]) -> str:
    """A hash of all parts, each told apart from its neighbours."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()


def run(
    command: Sequence[object],
    log_name: str,
    purpose: str,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Runs a command and returns its output, which is also kept in a log.

    Raises BuildError with the log's name, its first errors and its last lines when the command fails.
    """
    log = cache_dir() / "logs" / f"{log_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with log.open("w+", errors="replace") as output:
        output.write(f"$ {shlex.join(words)}\n")
        output.flush()
        start = output.tell()
        code = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
        output.seek(start)
        text = output.read()
    if code != 0:
        lines = text.splitlines()
        # A compiler's first error is the one that matters, and its notes may fill the end.
        first = [line for line in lines[:-20] if re.search(r"\berror\b:", line)][:3]
        shown = "\n".join([*first, *lines[-20:]])
        raise BuildError(f"{purpose} failed (exit {code}). The last lines of {log}:\n{shown}")
    return text


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One build at a time a user; another one waits."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build to finish ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in (cache_dir() / "tmp").glob("*"):  # of an interrupted build
            shutil.rmtree(left_over, ignore_errors=True)
        yield


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder beside the cache's entries, so that a finished entry gets its name by one rename."""
    base = cache_dir() / "tmp"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(made: Path, entry: Path) -> Path:
    """Moves something complete into the cache under its final name."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, entry)
    return entry


def is_cached(entry: Path) -> bool:
    """Whether an entry is there; if so it counts as used now."""
    if not entry.exists():
        return False
    os.utime(entry)
    return True


def forget_unused() -> None:
    oldest = time.time() - KEEP_UNUSED_S
    for kind in ("objects", "programs", "swig"):
        for entry in (cache_dir() / kind).glob("*"):
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@functools.cache
def version_of(program: str) -> str:
    """What a tool says about itself, as part of cache keys."""
    option = "-version" if program == "swig" else "--version"
    return subprocess.run([program, option], capture_output=True, text=True, check=True).stdout


# --- the source of pjproject


def source_tarball() -> Path:
    """The tarball to build, in the cache. Raises BuildError where none can be had."""
    named = os.environ.get("PJPROJECT_TARBALL")
    sources = cache_dir() / "sources"
    if named:
        return keep_tarball(Path(named))
    known = sorted(sources.glob("*.tar"), key=lambda path: path.stat().st_mtime)
    if known:
        return known[-1]
    return fetch_from_debian()


def keep_tarball(path: Path) -> Path:
    """Copies a tarball into the cache under its hash; it is then the newest there."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"PJPROJECT_TARBALL: {path}: {error.strerror}") from error
    entry = cache_dir() / "sources" / f"pjproject-{hashlib.sha256(data).hexdigest()[:16]}.tar"
    if not is_cached(entry):
        with scratch() as folder:
            copy = folder / "tarball"
            copy.write_bytes(data)
            keep(copy, entry)
    return entry


def fetch_from_debian() -> Path:
    """Fetches pjproject's component of Debian's source package ``asterisk`` in *sid*.

    The system's apt stays as it is: lists, cache and sources are private, and only the system's mirror and
    its network settings are taken over. Signatures are checked against Debian's keyring; a mirror frozen
    past its Release file's date is accepted.
    """
    step(3, "fetching pjproject from Debian's source package asterisk ...")
    mirror = debian_mirror()
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    network = [
        line for line in settings.splitlines() if re.match(r"Acquire::(http|https|ftp|Retries)\b", line)
    ]
    with scratch() as folder:
        for name in ("lists/partial", "archives/partial", "empty"):
            (folder / name).mkdir(parents=True)
        (folder / "sources.list").write_text(f"deb-src {signed_by()}{mirror} sid main\n")
        own = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": folder / "empty",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": folder / "empty",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": folder,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",
        }
        lines = [*network, *(f'{name} "{value}";' for name, value in own.items())]
        (folder / "apt.conf").write_text("\n".join(lines) + "\n")
        private = {"APT_CONFIG": str(folder / "apt.conf")}
        fetch = ["apt-get", "source", "--download-only", "asterisk"]
        try:
            run(
                ["apt-get", "update"],
                "apt-source-update",
                "reading Debian's list of sources",
                folder,
                private,
            )
            run(fetch, "apt-source", "fetching Debian's source package asterisk", folder, private)
        except BuildError as error:
            raise BuildError(f"{error}\n\n{other_source()}") from error
        found = sorted(folder.glob("asterisk_*.orig-Xpjproject.tar.*"))
        if not found:
            raise BuildError(f"Debian's source package asterisk has no pjproject any more.\n{other_source()}")
        return keep_tarball(found[-1])


def debian_mirror() -> str:
    """The mirror this system already uses for Debian itself."""
    if shutil.which("apt-get") is None:
        raise BuildError(other_source())
    mirrors = known_mirrors()
    if not mirrors and "ID=debian" in os_release():
        # Until its lists are fetched once, apt does not know its mirrors' origins.
        update = ["apt-get", "update"]
        root = as_root()
        if root is None:
            raise BuildError(f"apt knows no packages. {RUN_FIRST}  sudo {shlex.join(update)}")
        run([*root, *update], "apt-update", "updating the list of packages")
        mirrors = known_mirrors()
    if not mirrors:
        raise BuildError(other_source())
    return mirrors[0]


def known_mirrors() -> list[str]:
    question = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    question += ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    answer = subprocess.run(question, capture_output=True, text=True, check=False).stdout
    return [mirror for mirror in answer.split() if not mirror.startswith("cdrom:")]


def os_release() -> list[str]:
    path = Path("/etc/os-release")
    return path.read_text().splitlines() if path.exists() else []


def signed_by() -> str:
    for name in ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg"):
        keyring = Path("/usr/share/keyrings") / name
        if keyring.exists():
            return f"[signed-by={keyring}] "
    return ""


def other_source() -> str:
    wanted = ".".join(map(str, OLDEST_PJPROJECT))
    return (
        f"pjproject {wanted} or newer is needed and cannot be fetched on this system by itself.\n"
        f"Get the release tarball of pjproject {wanted} from pjsip.org, then name it once:\n"
        f"  PJPROJECT_TARBALL=/path/to/pjproject-{wanted}.tar.gz make setup"
    )


# --- pjproject's static libraries


@dataclasses.dataclass(frozen=True)
class Pjproject:
    """A compiled pjproject."""

    folder: Path
    version: str
    key: str
    cxxflags: tuple[str, ...]  # defines and include folders
    libraries: tuple[str, ...]  # linker arguments


def configure_flags() -> list[str]:
    return [*CONFIGURE_FLAGS, *([] if with_g729() else ["--disable-bcg729"])]


def pjproject() -> Pjproject:
    """Compiles pjproject unless the cache has it."""
    tarball = source_tarball()
    limits = (NATIVE_DIR / "config_site.h").read_bytes()
    key = digest([tarball.stem, limits, PJPROJECT_CFLAGS, version_of("g++"), *configure_flags()])
    entry = cache_dir() / "pjproject" / key[:16]
    if not entry.exists():
        with scratch() as folder:
            compile_pjproject(tarball, folder)
            keep(folder / "pjproject", entry)
    return describe_pjproject(entry, key)


def compile_pjproject(tarball: Path, folder: Path) -> None:
    tree = folder / "pjproject"
    tree.mkdir()
    unpack = ["tar", "-xf", str(tarball), "-C", str(tree), "--strip-components=1"]
    run(unpack, "unpack", f"unpacking {tarball}")
    if not (tree / "pjsip-apps/src/swig/pjsua2.i").exists():
        raise BuildError(f"{os.environ.get('PJPROJECT_TARBALL', tarball)} is not a pjproject source tarball")
    version = pjproject_version(tree)
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST_PJPROJECT:
        raise BuildError(f"pjproject {version} is too old.\n{other_source()}")
    step(4, f"compiling pjproject {version} (about 1 minute) ...")
    shutil.copy(NATIVE_DIR / "config_site.h", tree / "pjlib/include/pj/config_site.h")
    # Debian's tarball comes without this sound driver's source, which is of no use here.
    makefile = tree / "pjmedia/build/Makefile"
    makefile.write_text(re.sub(r"\bbdimad_dev\.o\b", "", makefile.read_text()))
    flags = {"CFLAGS": PJPROJECT_CFLAGS, "CXXFLAGS": PJPROJECT_CFLAGS}
    run(["./aconfigure", *configure_flags()], "pjproject-configure", "configuring pjproject", tree, flags)
    # No `make dep`: a tree that is built once from empty needs no dependency files.
    run(["make", f"-j{jobs()}", "lib"], "pjproject-make", "compiling pjproject", tree)
    for output in tree.glob("*/build/output"):
        shutil.rmtree(output)


def jobs() -> int:
    return len(os.sched_getaffinity(0))


def pjproject_version(tree: Path) -> str:
    found = dict(re.findall(r"PJ_VERSION_(\w+)\s*:=\s*(\d+)", (tree / "version.mak").read_text()))
    return ".".join(found[name] for name in ("MAJOR", "MINOR", "REV") if name in found)


def describe_pjproject(tree: Path, key: str) -> Pjproject:
    """Reads what to compile and link with from the makefile that configure wrote.

    The tree was renamed since, so its folder is given anew.
    """
    question = "include $(PJDIR)/build.mak\nall:\n\t@echo $(APP_CXXFLAGS)\n"
    question += "\t@echo $(APP_LDXXFLAGS) $(APP_LDXXLIBS)\n"
    answer = subprocess.run(
        ["make", "-s", "-f", "-", f"PJDIR={tree}"], input=question, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    compile_words, link_words = (shlex.split(line) for line in answer)
    includes = [word.removeprefix("-I") for word in compile_words if word.startswith("-I")]
    includes.append(str(tree / "pjsip-apps/src/swig"))
    defines = [word for word in compile_words if word.startswith("-D")]
    cxxflags = [*defines, *(word for folder in includes for word in ("-isystem", folder))]
    return Pjproject(tree, pjproject_version(tree), key, tuple(cxxflags), tuple(link_words))


# --- the module


def local_closure(path: Path, seen: dict[Path, bytes] | None = None) -> dict[Path, bytes]:
    """A C++ or SWIG file and the files it includes by name from its own folder or ours, with their content.

    Other includes belong to the system or to pjproject, which cache keys name by version.
    """
    seen = {} if seen is None else seen
    seen[path] = path.read_bytes()
    for name in re.findall(rb'^[ \t]*[#%][ \t]*include[ \t]+"([^"]+)"', seen[path], re.MULTILINE):
        for folder in (path.parent, NATIVE_DIR):
            included = (folder / name.decode()).resolve()
            if included.exists() and included not in seen:
                local_closure(included, seen)
    return seen


def content_key(path: Path, *parts: str) -> str:
    closure = local_closure(path)
    names_and_contents = [item for file, data in sorted(closure.items()) for item in (file.name, data)]
    return digest([*parts, *names_and_contents])[:24]


def compile_object(source: Path, flags: Sequence[str], key_parts: Sequence[str]) -> Path:
    """Compiles one C++ file, or takes the object from the cache. Warnings are shown."""
    entry = cache_dir() / "objects" / f"{source.stem}-{content_key(source, *flags, *key_parts)}.o"
    if not is_cached(entry):
        with scratch() as folder:
            made = folder / "object.o"
            command = ["g++", *flags, "-I", str(NATIVE_DIR), "-c", str(source), "-o", str(made)]
            warnings = run(command, f"compile-{source.stem}", f"compiling {source.name}")
            if warnings:
                say(warnings.rstrip())
            keep(made, entry)
    return entry


def compile_all(files: Sequence[tuple[Path, Sequence[str]]], key_parts: Sequence[str]) -> list[Path]:
    """Compiles files with the flags given for each, as many at once as there are processors."""
    with concurrent.futures.ThreadPoolExecutor(jobs()) as pool:
        pending = [pool.submit(compile_object, path, flags, key_parts) for path, flags in files]
        try:
            return [future.result() for future in pending]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def generate_wrapper(pj: Pjproject) -> Path:
    """Runs SWIG; returns the folder with the wrapper and pjsua2.py."""
    entry = cache_dir() / "swig" / content_key(INTERFACE, pj.key, version_of("swig"), *SWIG_OPTIONS)
    if not is_cached(entry):
        step(5, "generating the Python wrapper ...")
        with scratch() as folder:
            made = folder / "swig"
            made.mkdir()
            includes = [f"-I{word}" for word in pj.cxxflags if word.startswith("/")]
            command = ["swig", *SWIG_OPTIONS, f"-I{NATIVE_DIR}", *includes]
            command += ["-outdir", str(made), "-o", str(made / "pjsua2_wrap.cpp"), str(INTERFACE)]
            warnings = run(command, "swig", "generating the Python wrapper")
            if warnings:
                say(warnings.rstrip())
            keep(made, entry)
    return entry


def wheel_entry(pj: Pjproject) -> Path:
    """Where the cache keeps the wheel of these sources for the running Python."""
    # The build's own text counts: it says how files are compiled, linked and packed.
    inputs = [*NATIVE_DIR.glob("*.cpp"), *NATIVE_DIR.glob("*.hpp"), INTERFACE, Path(__file__)]
    named = [item for path in sorted(inputs) for item in (path.name, path.read_bytes())]
    key = digest([pj.key, sysconfig.get_config_var("SOABI"), sys.version, version_of("swig"), *named])
    return cache_dir() / "wheels" / f"pjsua2-{pj.version}+sipbridge.{key[:8]}-{wheel_tag()}.whl"


def wheel() -> Path:
    """The wheel of the running Python, built unless the cache has it."""
    pj = pjproject()
    entry = wheel_entry(pj)
    if is_cached(entry):
        return entry
    sources = sorted(NATIVE_DIR.glob("*.cpp"))
    generated = generate_wrapper(pj)
    include = ("-isystem", sysconfig.get_path("include"))
    # The wrapper comes last: of an inline function that both compiled, the linker takes the first, ours.
    files: list[tuple[Path, Sequence[str]]] = [
        *((path, (*MODULE_CXXFLAGS, *pj.cxxflags, *include)) for path in sources),
        (generated / "pjsua2_wrap.cpp", (*WRAPPER_CXXFLAGS, *pj.cxxflags, *include)),
    ]
    step(5, f"compiling pjsua2 {pj.version} with sipbridge's classes (about 1 minute) ...")
    objects = compile_all(files, (pj.key, version_of("g++")))
    with scratch() as folder:
        made = folder / "module"
        made.mkdir()
        shared = made / f"_pjsua2{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = ["g++", "-shared", "-o", shared, *objects, *pj.libraries, "-Wl,--exclude-libs,ALL"]
        run(command, "link", "linking pjsua2")
        shutil.copy(generated / "pjsua2.py", made)
        # Loads it once: a function declared but not defined shows only here.
        run([sys.executable, "-c", "import pjsua2"], "import", "importing the new pjsua2", made)
        shutil.rmtree(made / "__pycache__", ignore_errors=True)
        packed = folder / "wheel"
        write_wheel(packed, entry.name, sorted(made.iterdir()))
        return keep(packed, entry)


def wheel_tag() -> str:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"{python}-{python}{sys.abiflags}-{platform}"


def write_wheel(path: Path, name: str, files: Sequence[Path]) -> None:
    """Packs files into a wheel of this name (PyPA binary distribution format 1.0)."""
    _, version, tag = name.removesuffix(".whl").split("-", 2)
    info = f"pjsua2-{version}.dist-info"
    contents = {file.name: file.read_bytes() for file in files}
    contents[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: pjsua2\nVersion: {version}\n"
        "Summary: pjproject's pjsua2 with the native classes of sipbridge\nLicense: GPL-3.0-or-later\n"
    ).encode()
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: sipbridge\nRoot-Is-Purelib: false\nTag: {tag}\n"
    ).encode()
    record = ""
    for inside, data in contents.items():
        checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{inside},sha256={checksum},{len(data)}\n"
    record += f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, data in contents.items():
            archive.writestr(inside, data)
        archive.writestr(f"{info}/RECORD", record)


def install(path: Path) -> None:
    """Installs the wheel into the running Python's environment unless it is there."""
    version = path.name.split("-")[1]
    if (Path(sysconfig.get_path("platlib")) / f"pjsua2-{version}.dist-info").exists():
        say(f"pjsua2 {version} is installed")
        return
    step(6, f"installing pjsua2 {version} ...")
    with scratch() as folder:
        named = folder / path.name
        shutil.copy(path, named)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--force-reinstall",
        ]
        run([*pip, str(named)], "install", "installing pjsua2")


# --- C++ tests


def test_sources() -> list[Path]:
    return sorted((NATIVE_DIR / "tests").glob("test_*.cpp"))


def sanitizers_of(source: Path) -> list[str]:
    """Those that can find something in a C++ test; races are where there are threads."""
    has_threads = re.search(r"std::thread|\.start\(", source.read_text()) is not None
    return [name for name in SANITIZERS if name != "thread" or has_threads]


def build_test(source: Path, sanitizer: str) -> Path:
    """Compiles and links one C++ test; returns the program.

    Comments at its head say what it needs: ``// sources: clock.cpp`` (files of this folder to link),
    ``// libraries: -lcrypto`` and ``// pjsip: yes`` (pjproject's headers and libraries).
    """
    head = dict(re.findall(r"^// (sources|libraries|pjsip): *(.*)$", source.read_text(), re.MULTILINE))
    files = [source, *(NATIVE_DIR / name for name in head.get("sources", "").split())]
    pj = pjproject() if head.get("pjsip", "").strip() == "yes" else None
    flags = (*TEST_CXXFLAGS, *SANITIZERS[sanitizer], *((*pj.cxxflags, "-DPJ_DEBUG=0") if pj else ()))
    objects = compile_all([(path, flags) for path in files], (version_of("g++"), pj.key if pj else ""))
    libraries = (*head.get("libraries", "").split(), *(pj.libraries if pj else ()))
    key = digest([*(path.name for path in objects), *libraries])[:24]
    entry = cache_dir() / "programs" / f"{source.stem}-{sanitizer}-{key}"
    if not is_cached(entry):
        with scratch() as folder:
            made = folder / "program"
            link = ["g++", "-pthread", *SANITIZERS[sanitizer], "-o", made, *objects, *libraries]
            run(link, f"link-{source.stem}", f"linking {source.name}")
            keep(made, entry)
    return entry


def run_test(program: Path) -> None:
    """Runs a C++ test. Raises BuildError with its last words when it fails."""
    environment = {
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    }
    # The thread sanitizer cannot place its memory under the strongest address randomisation.
    command = ["setarch", "--addr-no-randomize", str(program)]
    run(
        command,
        f"run-{program.name.rsplit('-', 1)[0]}",
        program.name.rsplit("-", 1)[0],
        environment=environment,
    )


def run_tests(names: Sequence[str], sanitizers: Sequence[str]) -> None:
    chosen = [path for path in test_sources() if not names or path.stem in names or path.stem[5:] in names]
    if not chosen:
        raise BuildError(f"no such test; there are: {', '.join(path.stem for path in test_sources())}")
    for source in chosen:
        for sanitizer in (name for name in sanitizers_of(source) if name in sanitizers):
            started = time.monotonic()
            with locked():
                program = build_test(source, sanitizer)
            run_test(program)
            say(f"{source.stem} ({sanitizer}): passed, {time.monotonic() - started:.1f} s")


# --- command line


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Builds sipbridge's pjsua2 module.")
    parser.add_argument("--venv", type=Path, help="the virtual environment to install it in")
    parser.add_argument(
        "--packages",
        choices=("build", "test"),
        help="only install the system packages for building or testing",
    )
    parser.add_argument("--test", nargs="*", metavar="NAME", help="run C++ tests (all, or those named)")
    parser.add_argument("--sanitizer", choices=(*SANITIZERS, "all"), default="all", help="for --test")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    chosen = parse_arguments(arguments)
    if chosen.venv is not None and Path(sys.prefix).resolve() != chosen.venv.resolve():
        python = chosen.venv / "bin" / "python"
        if not python.exists():
            raise BuildError(f"{chosen.venv} is no virtual environment")
        os.execv(python, [str(python), str(Path(__file__)), *arguments])
    if chosen.packages == "test":
        ensure(test_needs(), "run the tests")
        return
    ensure(build_needs(), "build pjsua2")
    if chosen.packages == "build":
        return
    if chosen.test is not None:
        run_tests(chosen.test, list(SANITIZERS) if chosen.sanitizer == "all" else [chosen.sanitizer])
        return
    with locked():
        made = wheel()
        if chosen.venv is not None:
            install(made)
        else:
            say(str(made))
        forget_unused()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BuildError as error:
        sys.exit(f"sipbridge: {error}")
    except KeyboardInterrupt:
        sys.exit("\nsipbridge: interrupted; the same command goes on where this stopped")
