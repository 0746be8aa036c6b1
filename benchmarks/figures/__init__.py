"""What benchmarks/h200.py is made of: a module for each section, and what the sections share."""
