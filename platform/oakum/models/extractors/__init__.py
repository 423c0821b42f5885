"""Extractors: published feature networks that never saw the private data."""
