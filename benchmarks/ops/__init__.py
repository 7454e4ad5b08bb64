"""One module per op: its inputs, the providers that compute it, and what it must reach."""
