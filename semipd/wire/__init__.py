"""The wire between processes: protobuf <-> core, and the sockets that carry it."""
