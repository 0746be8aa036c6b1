"""`semipd profile`: measures a GPU and writes a latency profile."""
