# SPDX-License-Identifier: GPL-3.0-or-later
"""Voice agents: a call's audio to a program that speaks WebSocket (or AudioSocket's TCP), and back.

::

    media thread                    event loop
    ────────────                    ──────────
    telephone's frame ──► outbox ──► resample ──► Protocol.audio() ──► transport ──► agent
    telephone hears   ◄── AgentPlayback ◄── Protocol.receive() ◄────── transport ◄── agent

`protocol`
    what every wire format has in common; one module each beside it, all without I/O.
`playback`
    the agent's speech, which waits here for its time.
`transport`
    the sockets.
`session`
    one connection, with all that can go wrong in it.
`connection`
    the backend: one call's conversation with one agent, over however many connections.
`member`
    a program that has joined a room by itself.
"""
