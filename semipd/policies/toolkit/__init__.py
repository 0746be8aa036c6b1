"""What policies have in common: latency models, orders, deadlines, batches, forecasts."""
