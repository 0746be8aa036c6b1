"""Computes tokens: the decoder over a paged KV pool, sampling, and continuous batches. Owns no pages."""
