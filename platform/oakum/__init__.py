"""oakum: train privacy-defended models, attack them, and compare what leaks with what it costs."""

__version__ = "0.1.0"
