"""Attacks on a released model: membership inference and model inversion."""
