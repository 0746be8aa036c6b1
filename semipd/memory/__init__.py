"""Memory that several processes share: arenas, the page account, the manifest."""
