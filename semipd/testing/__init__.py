"""The test kit for authors of policies.

    from semipd.testing import check_policy

    def test_my_policy_keeps_the_contract():
        check_policy(MyPolicy)

`check_policy` runs every check of `semipd.testing.kit`: no plan breaks the contract, nobody starves, a call stays
inside its time budget, the same snapshots give the same plans. `replay` runs requests of your own through a policy.
Both play on the simulator (`semipd.sim`), with the latencies of the profile that ships unless a test names others.
"""

from semipd.policies.contract import Broken
from semipd.testing.kit import (
    check_budget,
    check_moments,
    check_no_starvation,
    check_policy,
    check_worlds,
    replay,
)
from semipd.testing.world import Arrival, Life, Settings, World

__all__ = [
    "Arrival",
    "Broken",
    "Life",
    "Settings",
    "World",
    "check_budget",
    "check_moments",
    "check_no_starvation",
    "check_policy",
    "check_worlds",
    "replay",
]
