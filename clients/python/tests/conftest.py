from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_server import PATIENCE_S, FakeServer

from semipd_client import Client


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, timeout=PATIENCE_S) as made:
        yield made
