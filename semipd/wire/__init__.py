"""Between processes: protobuf <-> core, and the sockets that carry it."""
