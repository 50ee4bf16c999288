"""What can be wrong with a stored sample: a closed list of reasons, and the exception that carries one."""

from enum import Enum


class Reason(str, Enum):
    """Why a sample could not be used; counters and logs are keyed by these values."""

    MISSING_SHARD = "missing_shard"
    """The shard or its index is not where the manifest says."""
    TRUNCATED_SHARD = "truncated_shard"
    """The shard is shorter than the manifest says."""
    REPLACED_SHARD = "replaced_shard"
    """The shard or its index is not the one the manifest names (other size, sha256 or count)."""
    BAD_INDEX = "bad_index"
    """The index of the shard cannot be read as one."""
    CHECKSUM = "checksum"
    """Stored bytes differ from their checksum."""
    DECODE = "decode"
    """The bytes are as they were written, but are no picture of the size that the index names."""
    UNREADABLE = "unreadable"
    """The file system reported an error."""


class CorruptSample(Exception):  # noqa: N818 - it names a thing found, not a failure of ours
    """A stored sample (or a whole shard) is not what was written.

    Attributes:
        reason: one of :class:`Reason`.
        where: shard name, with the sample's key where one is to blame.
        detail: what was found and what was expected.
    """

    def __init__(self, reason: Reason, where: str, detail: str):
        super().__init__(reason, where, detail)  # which pickle gives back, between processes
        self.reason = reason
        self.where = where
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.where}: {self.reason.value}: {self.detail}"
