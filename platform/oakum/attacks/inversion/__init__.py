"""Model inversion: what does a class look like? One file per attack."""
