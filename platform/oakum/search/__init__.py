"""Searching a defense's settings on measured leakage."""
