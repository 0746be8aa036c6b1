"""Errors of the page account."""

from __future__ import annotations

from semipd.core.errors import SemipdError


class AccountError(SemipdError):
    """Root of the account's errors."""


class StaleLease(AccountError):
    """The lease is closed, or its holder is another: the caller has been replaced, or asks twice."""


class NoLease(AccountError):
    """Every lease slot is in use."""


class AccountBusy(AccountError):
    """The lock did not come free in time: its holder is stopped or hangs."""


class AccountCorrupt(AccountError):
    """The account contradicts itself; the message names the first contradiction."""
