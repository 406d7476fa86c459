# SPDX-License-Identifier: GPL-3.0-or-later
"""`livekit:ROOM`: a call as a SIP participant of a LiveKit room. See docs/livekit.md.

::

    connection.py   a call in its room, over however many sessions; holds what the telephone is there
      ├── participant.py   who it is: identity, name, attributes
      ├── token.py         what lets it in
      └── session.py       one membership: signalling, a connection each way, tracks
            ├── signal.py     the WebSocket, with LiveKit's messages
            └── packets.py    what goes over data channels: keys, texts, calls of methods
"""
