# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers and measures for the tests: processes, SIP and RTP parties, and what is heard."""
