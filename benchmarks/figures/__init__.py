"""The parts of benchmarks/h200.py: a module for each section, and what the sections share."""
