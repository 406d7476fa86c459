# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark: telephones of our own call a bridge and measure what it adds. `python -m bench --help`."""
