# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP API: its schema, its token, its routes and the server that runs them."""
