"""The client of the tests of HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from p2pcloopd.http.client import HttpClient


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient()
    yield client
    await client.aclose()
