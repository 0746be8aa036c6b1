"""The model that is served when none is named."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"
"""A Hugging Face directory; its README says what it is."""


def model_directory(given: str) -> Path:
    """Returns the directory that --model names; without a name the bundled model's."""
    return Path(given) if given else BUNDLED
