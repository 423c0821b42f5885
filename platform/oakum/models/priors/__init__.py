"""Priors: generators trained on public data."""
