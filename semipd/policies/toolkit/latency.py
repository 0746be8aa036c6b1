"""The latency model of `semipd.core.latency`, under the name that policies import it by."""

from __future__ import annotations

from semipd.core.latency import LatencyModel, Scales
from semipd.core.sms import split

__all__ = ["LatencyModel", "Scales", "split"]
