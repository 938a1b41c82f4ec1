"""Readers of public trace formats and generators of synthetic ones."""
