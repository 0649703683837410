"""Errors of measuring that a user can correct."""

from sail_encoder.io.errors import UserError


class DatasetError(UserError):
    """A data set that cannot be used; the message says why in one line."""
