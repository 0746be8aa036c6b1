"""SLO policies: the contract, the built-in ones, and how others are found (entry points `semipd.policies`)."""
