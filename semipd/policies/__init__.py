"""SLO policies. Everything that an author of a policy needs is imported from here.

    from semipd.policies import Plan, Policy, Snapshot, fill_batch

`semipd.policies.toolkit` has what policies with deadlines or a latency model share, `semipd.policies.builtin` the
policies that ship, `semipd.policies.registry` finds those that are installed, and `semipd.testing` tests them.
"""

from semipd.core.latency import LatencyModel
from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.plan import Admission, Chunk, Plan
from semipd.core.request import Slo
from semipd.core.snapshot import (
    Completion,
    FirstToken,
    Limits,
    Observed,
    PageUse,
    RunningSequence,
    SequenceId,
    Snapshot,
    Step,
    WaitingSequence,
)
from semipd.policies.contract import Broken, Policy
from semipd.policies.policy_options import PolicyOptions, option
from semipd.policies.toolkit.batching import fill_batch

__all__ = [
    "FULL",
    "Admission",
    "Broken",
    "Chunk",
    "Completion",
    "FirstToken",
    "LatencyModel",
    "Limits",
    "Mode",
    "Observed",
    "PageUse",
    "Phase",
    "Plan",
    "Policy",
    "PolicyOptions",
    "RunningSequence",
    "SequenceId",
    "Shares",
    "Slo",
    "Snapshot",
    "Step",
    "WaitingSequence",
    "fill_batch",
    "option",
]
