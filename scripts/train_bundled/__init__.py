"""Trains the bundled model: `python -m scripts.train_bundled --help`."""
