"""The load processes, and their parent."""
