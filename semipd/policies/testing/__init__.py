"""The former name of `semipd.testing`; it stays for one release."""

import warnings

from semipd.testing import *  # noqa: F403
from semipd.testing import __all__ as __all__

warnings.warn("semipd.policies.testing is called semipd.testing now", DeprecationWarning, stacklevel=2)
