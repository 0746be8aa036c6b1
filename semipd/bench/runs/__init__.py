"""Whole runs: one rate, a goodput search, an interference run."""
