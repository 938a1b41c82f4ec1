"""Certificates of lower bounds, and their exact verification: rational arithmetic, nothing taken on trust.

Whoever finds multipliers is free in how; what they prove is computed here, from the instance alone.
"""
