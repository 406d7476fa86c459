# SPDX-License-Identifier: GPL-3.0-or-later
from bench.run import main

main()
