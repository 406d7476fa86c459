# SPDX-License-Identifier: GPL-3.0-or-later
"""C++ sources of the ``pjsua2`` extension module and the program that builds it."""
