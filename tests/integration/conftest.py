# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every test with the real server."""

from collections.abc import Iterator

import pytest

from tests.conftest import SHARED_SERVER


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the shared server, where it runs, is alive and has no call."""
    yield
    server = request.config.stash.get(SHARED_SERVER, None)
    if server is not None:
        assert server.process.poll() is None, server.tail()
        try:
            server.wait_idle()
        except AssertionError:
            # So that the next test does not pay for this one.
            for call in server.calls():
                server.hang_up(call["id"])
            raise
