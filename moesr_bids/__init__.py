"""Super-resolution of clinical brain MRI to BIDS derivatives."""

__version__ = "0.2.0"
