"""Advantages from outcome rewards, whatever the grouping."""
