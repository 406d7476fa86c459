# SPDX-License-Identifier: GPL-3.0-or-later
"""A menu by telephone: prompts that a key interrupts, digits that are collected, a transfer.

`pip install websockets numpy soxr`, the program espeak-ng for the voice, then `python agent_ivr.py [PORT]`.
It speaks the bridge's protocol "proxy", for a rule with the target "ws://127.0.0.1:8765".
"""

import asyncio
import contextlib
import functools
import io
import json
import subprocess
import sys
import wave

import numpy as np
import soxr
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


@functools.cache
def speak(text: str) -> bytes:
    """The text as 16-bit samples at 16 kHz."""
    spoken = subprocess.check_output(["espeak-ng", "--stdout", text])
    with wave.open(io.BytesIO(spoken)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        return bytes(soxr.resample(samples, sound.getframerate(), 16000).tobytes())


async def say(call: ServerConnection, text: str) -> None:
    await call.send(await asyncio.to_thread(speak, text))


async def next_event(call: ServerConnection, kind: str) -> dict[str, str]:
    while True:
        message = await call.recv()
        if isinstance(message, str) and json.loads(message).get("type") == kind:
            return dict(json.loads(message))


async def next_key(call: ServerConnection) -> str:
    event = await next_event(call, "dtmf")
    await call.send(json.dumps({"type": "clear"}))  # the prompt has done its work
    return event["digit"]


async def talk(call: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await say(call, "Press 1 to enter your number, 2 for a person, or 9 to hang up.")
            match await next_key(call):
                case "1":
                    await say(call, "Enter your number, and then the hash key.")
                    number = ""
                    while (key := await next_key(call)) != "#":
                        number += key
                    await call.send(json.dumps({"type": "text", "content": number}))
                    await say(call, f"You entered {' '.join(number)}.")
                case "2":
                    await call.send(json.dumps({"type": "transfer", "to": "200"}))
                    await next_event(call, "refused")  # or the call goes elsewhere
                    await say(call, "I am sorry, nobody can be reached.")
                case "9":
                    await say(call, "Goodbye.")
                    await call.send(json.dumps({"type": "hangup"}))


async def main(port: int) -> None:
    async with serve(talk, "127.0.0.1", port, compression=None) as server:
        print(f"listening at ws://127.0.0.1:{port}", flush=True)
        await server.serve_forever()


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8765))
