"""Errors that name the file, what is wrong with it, and what to do."""


class ImageError(ValueError):
    """An image that cannot be used."""
