"""Damaged shards as an error message of a command."""

from collections.abc import Iterator
from contextlib import contextmanager

from motionmae.data.shards.errors import CorruptSample
from motionmae.errors import UserError


@contextmanager
def corruption_as_user_error() -> Iterator[None]:
    """Turn a CorruptSample into a UserError that names the command to find all damage. Also a decorator."""
    try:
        yield
    except CorruptSample as error:
        raise UserError(f"{error}; `motionmae shards verify` lists all damage") from error
