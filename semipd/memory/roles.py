"""Translates a worker's role between the page account and the wire."""

from __future__ import annotations

from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role

WORKER_ROLES = (Role.DECODE, Role.PREFILL)
"""The roles that worker processes can have, in the order in which they are assigned."""

_TO_WIRE = {Role.DECODE: wk.WORKER_ROLE_DECODE, Role.PREFILL: wk.WORKER_ROLE_PREFILL}
_FROM_WIRE = {wire: role for role, wire in _TO_WIRE.items()}


def role_to_wire(role: Role) -> wk.WorkerRole:
    """Returns the wire's value for a worker's role. Raises KeyError for the coordinator, which is no worker."""
    return _TO_WIRE[role]


def role_from_wire(role: wk.WorkerRole) -> Role:
    """Returns the worker's role that a message names. Raises KeyError where it names none."""
    return _FROM_WIRE[role]
