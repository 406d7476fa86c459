# SPDX-License-Identifier: GPL-3.0-or-later
"""The audio port of a call leg, as Python sees it: control, never a frame."""

import math

import pjsua2 as pj


def level_dbfs(peak: int) -> float:
    """A peak of int16 samples in dB relative to full scale; -100 for silence."""
    return -100.0 if peak <= 0 else max(-100.0, 20.0 * math.log10(peak / 32768))


class MediaPort(pj.FramePort):  # type: ignore[misc]  # pjsua2 has no types
    """A pjsua2 `AudioMediaPort` with a capture and a playback jitter queue in C++ (frame_port.hpp).

    Made and let go on the SIP thread; its methods may be called from any.
    """

    def __init__(self, engine: "pj.Engine", rate_hz: int = 8000) -> None:
        super().__init__(engine.bank(), rate_hz)
        self.port_id: int = self.id()
