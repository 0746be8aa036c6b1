"""Generated from proto/semipd/internal/v1."""
