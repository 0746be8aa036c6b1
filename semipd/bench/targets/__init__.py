"""The servers that a benchmark drives, and how each is spoken to."""
