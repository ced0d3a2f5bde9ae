"""HTTP in: verify, decode, accept, answer. Calls no provider, knows no sink."""
