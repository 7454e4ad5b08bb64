"""The ground floor: knows no op."""
