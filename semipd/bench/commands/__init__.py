"""The commands under `semipd bench`, and `semipd top`."""
