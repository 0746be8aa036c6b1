"""The wire between a server's own processes."""
