"""The config: a server in simulated time, over a latency profile that was recorded on a GPU."""
