"""Metrics: pure functions of evidence, each with an interval and a resolution guard."""
