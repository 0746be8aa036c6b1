"""What a run recorded, and the scores that are computed from it."""
