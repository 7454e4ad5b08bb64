"""How fast, in how much memory, beside whom: `python benchmarks/run.py <op>`."""
