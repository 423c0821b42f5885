"""Extractors: published feature networks that no run trains."""
