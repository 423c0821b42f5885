"""Membership inference: who was in the training set? One file per attack."""
