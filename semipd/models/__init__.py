"""The model that is served when none is named."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"
"""A Hugging Face directory; its README says what it is."""
