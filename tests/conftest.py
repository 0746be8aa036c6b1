"""Settings of every test process."""

from __future__ import annotations

import signal

from support.signals import default_dispositions


def pytest_configure() -> None:
    """Gives every child the default reaction to signals, whatever this process inherited.

    A shell without job control, and nohup, start background commands with SIGINT, SIGQUIT or SIGHUP ignored, and what
    is ignored stays ignored in children. Tests send such signals to children on purpose.
    """
    default_dispositions((signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM))
