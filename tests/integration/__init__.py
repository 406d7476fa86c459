# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that call the real server with real peers on loopback."""
