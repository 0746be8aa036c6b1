"""The default policy: `policy.Adaptive`."""
