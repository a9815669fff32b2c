"""Checks of what users give."""


class UsageError(ValueError):
    """Options or settings that cannot be; the message is for the person who gave them."""
