"""Plots and tables of benchmark results."""
