# SPDX-License-Identifier: GPL-3.0-or-later
"""The audio port of a call leg, as Python sees it: control, never a frame."""

import pjsua2 as pj


class MediaPort(pj.FramePort):  # type: ignore[misc]  # pjsua2 has no types
    """A pjsua2 `AudioMediaPort` with a capture and a playback jitter queue in C++ (frame_port.hpp).

    Made and let go on the SIP thread; its methods may be called from any.
    """

    def __init__(self, engine: "pj.Engine", rate_hz: int = 8000) -> None:
        super().__init__(engine.bank(), rate_hz)
        self.port_id: int = self.id()
