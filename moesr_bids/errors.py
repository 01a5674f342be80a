"""Errors that name the file, what is wrong with it, and what to do."""


class ImageError(ValueError):
    """An image that cannot be used."""


class UsageError(Exception):
    """The command line cannot be carried out; the message is one sentence for the user."""
