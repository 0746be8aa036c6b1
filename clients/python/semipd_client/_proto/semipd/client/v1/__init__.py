"""Generated from proto/semipd/client/v1."""
