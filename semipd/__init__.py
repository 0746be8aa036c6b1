"""semipd: disaggregated prefill and decode over one copy of the weights and one KV pool."""

__version__ = "0.1.0"
