"""What a policy is.

A policy decides in three stages, named as the field names them: it may *admit* a request, it *orders* the waiting
sequences, and it *places* them: which run now, in which chunks, and on which share of the device. Each stage takes
one immutable input and returns one immutable value. A policy does no I/O and reads no clock (`snapshot.now_s` is the
time), so the same object runs in the server, in the simulator and in tests. It may remember what it saw.

The server guards every call: a policy that raises, runs longer than its time budget or returns a plan that breaks
the contract is replaced by the fallback (`fcfs`), which is logged and exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from semipd.core.plan import Admission, AdmitInput, Order, OrderInput, PlaceInput, Plan
from semipd.core.snapshot import Snapshot


class Policy(ABC):
    """Subclass it, name it, and register it under the entry point group `semipd.policies`.

    `options` are the strings given as `--policy-option NAME=VALUE`; a constructor that gets one that it doesn't know
    or can't read raises `ConfigError`, naming the option and what is allowed.
    """

    name: ClassVar[str]

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = dict(options)

    def admit(self, given: AdmitInput) -> Admission:
        """At the door, once a request. Default: accept; a full queue is the server's matter."""
        return Admission()

    @abstractmethod
    def order(self, given: OrderInput) -> Order:
        """Each time that work may be given out. A sequence named twice or not waiting breaks the contract."""

    @abstractmethod
    def place(self, given: PlaceInput) -> Plan:
        """Right after `order`. See `Plan` for what must hold."""

    def plan(self, snapshot: Snapshot) -> Plan:
        """`order`, then `place`: what the server calls."""
        return self.place(PlaceInput(snapshot, self.order(OrderInput(snapshot))))
