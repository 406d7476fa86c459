# SPDX-License-Identifier: GPL-3.0-or-later
"""The audio proxy: a speech model that is reached over HTTP, for calls that speak the protocol `proxy`."""
