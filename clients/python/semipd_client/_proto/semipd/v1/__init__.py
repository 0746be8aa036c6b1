"""Generated from proto/semipd/v1."""
