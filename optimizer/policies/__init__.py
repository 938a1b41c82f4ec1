"""Scheduling policies: one small file each, registered by name."""
