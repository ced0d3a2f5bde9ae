"""What the tests of sinks over HTTP share: a destination on loopback, and a client that reaches it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from aftercall.client import make_client
from aftercall.testing import Destination


@pytest.fixture
async def destination() -> AsyncIterator[Destination]:
    destination = Destination()
    await destination.start()
    yield destination
    await destination.stop()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(guarded=False) as client:
        yield client
