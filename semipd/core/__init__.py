"""The vocabulary that every room shares. No I/O, no torch, no grpc; values in and values out."""
