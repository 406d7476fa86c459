# SPDX-License-Identifier: GPL-3.0-or-later
"""The channel side: what a call can be paired with. One module or package a backend."""
