# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m sipbridge``."""

from sipbridge.cli import main

if __name__ == "__main__":
    main()
