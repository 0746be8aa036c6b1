"""Parts that policies share: latency models, orders, deadlines, batches, forecasts."""
