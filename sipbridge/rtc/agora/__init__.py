# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels of Agora's network, by its official SDK, which whoever wants them installs."""
