"""The processes that compute, and the one that holds the memory: thin loops over engine and memory."""
