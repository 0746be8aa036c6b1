from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fake_server import PATIENCE_S, FakeServer

from semipd_client import AsyncClient, Client, TlsOptions, Unavailable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate, its own authority, for semipd.test."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=semipd.test"
    names = ["-addext", "subjectAltName=DNS:semipd.test", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/ca.pem"]
    try:
        subprocess.run([*command.split(), *names], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not here")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FakeServer]:
    pair = ((folder / "key.pem").read_bytes(), (folder / "ca.pem").read_bytes())
    with FakeServer(grpc.ssl_server_credentials([pair])) as running:
        yield running


def test_a_server_is_trusted_by_its_authority_and_its_name(server: FakeServer, folder: Path) -> None:
    tls = TlsOptions(ca_file=folder / "ca.pem", server_name="semipd.test")
    with Client(server.address, tls=tls, api_key="k", timeout=PATIENCE_S) as client:
        assert client.stream("p").result().text == "Hi!"
    assert server.metadata[0]["authorization"] == "Bearer k"


async def test_by_the_async_client_too(server: FakeServer, folder: Path) -> None:
    tls = TlsOptions(ca_file=folder / "ca.pem", server_name="semipd.test")
    async with AsyncClient(server.address, tls=tls, timeout=PATIENCE_S) as client:
        assert (await client.stream("p").result()).text == "Hi!"


@pytest.mark.parametrize("server_name", [None, "other.test"])
def test_another_name_is_not_trusted(server: FakeServer, folder: Path, server_name: str | None) -> None:
    tls = TlsOptions(ca_file=folder / "ca.pem", server_name=server_name)
    with Client(server.address, tls=tls, timeout=PATIENCE_S) as client, pytest.raises(Unavailable):
        client.generate("p")


def test_a_strange_authority_is_not_trusted(server: FakeServer) -> None:
    with (
        Client(server.address, tls=TlsOptions(server_name="semipd.test"), timeout=PATIENCE_S) as client,
        pytest.raises(Unavailable),
    ):
        client.generate("p")


def test_a_file_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client("127.0.0.1:1", tls=TlsOptions(ca_file=tmp_path / "none.pem"))
