# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the C++ tests of sipbridge/sip/native/tests, each under the sanitizers that find something in it."""

from pathlib import Path

import pytest

from sipbridge.sip.native import build

LEAK = """
#include <cstdlib>
void* volatile kept[2];
int main() {
  for (int i = 0; i < 100; ++i) kept[i % 2] = std::malloc(32);
  return 0;
}
"""
OVERFLOW = """
#include <climits>
int main(int count, char**) {
  int big = INT_MAX;
  big += count;
  return big == 0;
}
"""
RACE = """
#include <thread>
int shared = 0;
int main() {
  std::thread other([] { for (int i = 0; i < 100000; ++i) ++shared; });
  for (int i = 0; i < 100000; ++i) ++shared;
  other.join();
  return 0;
}
"""


# The first of them may have to compile pjproject.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("source", "sanitizer"),
    [(source, sanitizer) for source in build.test_sources() for sanitizer in build.sanitizers_of(source)],
    ids=lambda value: value.stem.removeprefix("test_") if isinstance(value, Path) else value,
)
def test_native(source: Path, sanitizer: str) -> None:
    """A C++ test ends without a complaint."""
    with build.locked():
        program = build.build_test(source, sanitizer)
    build.run_test(program)


@pytest.mark.parametrize(
    ("code", "sanitizer", "complaint"),
    [
        (LEAK, "address", "LeakSanitizer"),
        (OVERFLOW, "address", "signed integer overflow"),
        (RACE, "thread", "data race"),
        ("int main() { return 3; }\n", "address", "exit 3"),
    ],
    ids=["leak", "overflow", "race", "exit"],
)
def test_faults_are_noticed(code: str, sanitizer: str, complaint: str, tmp_path: Path) -> None:
    """A faulty program fails under the sanitizer meant for it."""
    source = tmp_path / "test_faulty.cpp"
    source.write_text(code)
    with build.locked():
        program = build.build_test(source, sanitizer)
    with pytest.raises(build.BuildError, match=complaint):
        build.run_test(program)
