"""The only package that imports Ray: executor, Ray Train, cluster helpers."""
