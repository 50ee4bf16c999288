"""The error that a missing or damaged sample raises, and its possible reasons."""

from enum import StrEnum


class Reason(StrEnum):
    """Reason why a sample cannot be used. Counters and logs use these values as keys."""

    MISSING_SHARD = "missing_shard"  # the shard or its index does not exist
    TRUNCATED_SHARD = "truncated_shard"  # the shard is shorter than the manifest says
    REPLACED_SHARD = "replaced_shard"  # shard or index differs from the manifest in size, sha256 or number of samples
    BAD_INDEX = "bad_index"  # the index of the shard cannot be parsed
    CHECKSUM = "checksum"  # the stored bytes do not match their checksum
    DECODE = "decode"  # the bytes match their checksum, but do not decode to an image of the size in the index
    UNREADABLE = "unreadable"  # the file system reported an error


class CorruptSample(Exception):  # noqa: N818 - names a property of the data, not a failure of the program
    """A stored sample or a whole shard is missing or damaged.

    ``where`` is the name of the shard, then the key of the sample if only one sample is affected.
    """

    def __init__(self, reason: Reason, where: str, detail: str):
        super().__init__(reason, where, detail)  # pickle passes these arguments to another process
        self.reason = reason
        self.where = where
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.where}: {self.reason.value}: {self.detail}"
