# SPDX-License-Identifier: GPL-3.0-or-later
"""WebRTC: peer connections with audio tracks and data channels, for browsers and for other networks.

ICE, DTLS, SRTP and SCTP are libdatachannel's; RTP, codecs and jitter are our own and native
(`sipbridge/sip/native/track_stream.hpp`). Nothing here is imported before somebody asks for it.
"""
