"""Defenses: one file per method; `base.py` is the undefended baseline `none`."""
