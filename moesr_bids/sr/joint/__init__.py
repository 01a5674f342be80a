"""One image from several scans of a head: positions, operators, the common solution."""
