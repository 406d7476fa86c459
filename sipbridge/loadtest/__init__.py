# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls a bridge with many telephones of its own, and tells what it adds: delay, losses, CPU, memory."""
