"""The gRPC face: checks, tokenises, streams, and tells errors in gRPC's terms. Never imports torch."""
