"""The former name of `semipd.testing`; it stays for one release."""

from semipd.testing import *  # noqa: F403
from semipd.testing import __all__ as __all__
