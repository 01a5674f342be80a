"""One image from several scans of a head: positions, operators, the common solution."""

APART = "no two scans fit together"
"""Words of the error where there is nothing to join."""
