# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.support.agora_engine``: makes the simulated engine, once, before the tests need it."""

from tests.support.agora_engine import main

main()
