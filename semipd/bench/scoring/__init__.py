"""Records of a run, and the scores that are computed from them."""
