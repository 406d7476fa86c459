# SPDX-License-Identifier: GPL-3.0-or-later
"""The SIP side: one pjsua2 endpoint, its thread, and the call legs that live there."""

from sipbridge.sip.call import CallLeg
from sipbridge.sip.endpoint import SipEndpoint

__all__ = ["CallLeg", "SipEndpoint"]
