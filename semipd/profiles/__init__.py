"""Latency profiles: what a GPU was measured to do with a model."""
