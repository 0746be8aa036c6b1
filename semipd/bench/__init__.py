"""The load generator: drives a server with a trace and scores what came back.

Depends on nothing of the server but its public API, so that our peers are measured by the very same client.
"""
