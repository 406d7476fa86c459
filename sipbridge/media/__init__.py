# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything about sound between a SIP leg and a channel: the tick, mixing, tones, files, DTMF, quality."""
