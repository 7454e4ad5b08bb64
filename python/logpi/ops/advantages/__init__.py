"""Advantages of sequences that are compared within groups, and of their tokens."""
