# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge between SIP telephone calls and real-time audio channels."""

__version__ = "0.1.0"
