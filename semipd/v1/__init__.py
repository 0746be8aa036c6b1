"""Generated from proto/semipd/v1: the public API."""
