"""Classifiers, one family per file; `priors/` holds the generators that inversion attacks search."""
