"""Tests in which order gathered messages leave the coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from semipd.coordinator.requests import Ticket
from semipd.coordinator.transport import ZmqTransport
from semipd.core.request import Delta
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.wire.sockets import RunDir, connect_dealer

GATEWAY = b"gateway.0"
ANSWER_MS = 10_000


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[tuple[ZmqTransport, zmq.Socket[bytes]]]:
    """A transport, and the socket of the gateway that it knows."""
    run_dir = RunDir(tmp_path)
    with ZmqTransport(run_dir) as transport, zmq.Context() as context:
        gateway = connect_dealer(context, run_dir.gateway_endpoint, GATEWAY.decode())
        try:
            gateway.send(gw.FromGateway(hello=gw.GatewayHello()).SerializeToString())
            assert transport.gateways.poll(ANSWER_MS)
            assert [identity for identity, _ in transport.from_gateways()] == [GATEWAY]
            yield transport, gateway
        finally:
            gateway.close()


def heard(gateway: zmq.Socket[bytes]) -> gw.ToGateway:
    assert gateway.poll(ANSWER_MS)
    return gw.ToGateway.FromString(gateway.recv())


def told(message: gw.ToGateway) -> list[tuple[int, int]]:
    """Returns ticket and position of each delta."""
    return [(delta.ticket, delta.position) for delta in message.deltas.deltas]


def test_first_tokens_leave_before_the_tokens_of_a_step(wire: tuple[ZmqTransport, zmq.Socket[bytes]]) -> None:
    transport, gateway = wire
    transport.token(Ticket(GATEWAY, 1), 0, 7, 40)
    transport.delta(Ticket(GATEWAY, 2), Delta(0, 3, (41,)))
    transport.delta(Ticket(GATEWAY, 3), Delta(0, 0, (42,)))
    transport.token(Ticket(GATEWAY, 3), 0, 1, 43)
    transport.flush()
    assert told(heard(gateway)) == [(3, 0)]
    assert told(heard(gateway)) == [(1, 7), (2, 3), (3, 1)]


def test_what_was_gathered_leaves_before_a_message_that_comes_later(
    wire: tuple[ZmqTransport, zmq.Socket[bytes]],
) -> None:
    transport, gateway = wire
    transport.token(Ticket(GATEWAY, 1), 0, 1, 40)
    transport.token(Ticket(GATEWAY, 2), 0, 0, 41)
    transport.to_gateway(GATEWAY, gw.ToGateway(ended=gw.Ended(ticket=1)))
    transport.flush()
    assert [told(heard(gateway)), told(heard(gateway))] == [[(2, 0)], [(1, 1)]]
    assert heard(gateway).ended.ticket == 1
