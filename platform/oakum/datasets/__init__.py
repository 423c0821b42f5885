"""Data sets: one file per data set, prepared once into Parquet with a manifest."""
