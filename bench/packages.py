# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs what measuring takes of the system, beside what the program itself does."""

from sipbridge.sip.native.build import BuildError, Need, ensure

NEEDS = [
    Need("pkg-config", "pkg-config"),
    Need("spandsp.h", "libspandsp-dev"),  # the callers' G.722
    Need("opus/opus.h", "libopus-dev"),  # and Opus
    Need("espeak-ng", "espeak-ng"),  # what they say
]


if __name__ == "__main__":
    try:
        ensure(NEEDS, "measure")
    except BuildError as error:
        raise SystemExit(str(error)) from None
