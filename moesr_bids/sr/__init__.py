"""Super-resolution engine: acquisition operator, reconstruction models, projection onto the data, metrics.

Everything here works on NIfTI images and arrays alone: neither Nipype nor BIDS is imported.
"""
