"""Manifest and state of one checkpoint folder: their schemas, and the check of the files against the manifest.

A checkpoint is untrusted: the manifest can only name files of its own folder, and only regular files are opened. The
module does not import torch.
"""

import errno
import hashlib
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from motionmae.errors import UserError
from motionmae.json_text import JSON_LIMIT, InvalidJsonError, JsonModel, load_json, parse_json, read_limited
from motionmae.runs.end_reason import StorageError

FORMAT = 1  # version of the folder's layout; other versions are refused
MANIFEST, STATE = "manifest.json", "state.json"
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that prove damage. Others, such as a stale handle or an unreachable server, are storage failures."""

Count = Annotated[int, Field(ge=0, lt=2**53)]
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}$")]
"""Name of a file in the same folder: no path, no hidden file, no control characters."""

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class FileEntry:
    """File of a checkpoint, as listed in the manifest."""

    name: PlainName
    bytes: Count
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tensors: tuple[str, ...] = ()  # parameters whose tensors the file contains


def _each_name_once(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    if len({entry.name for entry in files}) < len(files):
        raise ValueError("a file is listed twice")
    return files


class _Version(JsonModel, extra="ignore"):
    format: Annotated[int, Field(lt=2**53)]


class _Manifest(_Version):
    step: Count
    position: Count | None = None
    files: Annotated[tuple[FileEntry, ...], AfterValidator(_each_name_once)]


@dataclass(frozen=True)
class Checkpoint:
    """Committed checkpoint of a run."""

    source: ClassVar[str] = "disk"
    folder: Path
    step: int
    files: tuple[FileEntry, ...]
    position: int  # steps of data consumed; rises with every save, even after a rollback

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    @property
    def on_disk(self) -> str | None:
        """Name of the newest checkpoint on disk, as far as this checkpoint knows."""
        return self.folder.name

    def reader(self, index: int, file: str, world: int) -> int:
        """Return the rank that reads the ``index``-th parameter from ``file``. Every rank can read every file."""
        return index % world

    def state(self, schema: type[Schema] = dict[str, Any]) -> Schema:  # type: ignore[assignment]
        """Read state.json: the state of the trainer and of the loader, the config and more, as far as ``schema`` says.

        Raises:
            UserError: the file is missing or damaged, or does not fit the schema.
            StorageError: the file cannot be read, and may be intact.
        """
        path = self.folder / STATE
        try:
            return load_json(path, schema)
        except (InvalidJsonError, *MISSING) as error:
            reason = str(error) if isinstance(error, InvalidJsonError) else error.strerror
            raise UserError(f"{path} is damaged ({reason}): choose another checkpoint of the run") from error
        except OSError as error:
            cause = error.strerror or error
            raise StorageError(f"{path} cannot be read ({cause}): start again when the storage works") from error

    def defect(self, sizes_only: bool = False) -> str:
        """Return a description of the damage; empty if the checkpoint is intact. ``sizes_only`` skips the checksums.

        An OSError means that storage failed: the files may be intact.
        """
        with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
            return next(filter(None, pool.map(lambda entry: self._file_defect(entry, sizes_only), self.files)), "")

    def _file_defect(self, entry: FileEntry, sizes_only: bool) -> str:
        path = self.folder / entry.name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return f"{entry.name} is not a regular file"
            if status.st_size != entry.bytes:
                return f"{entry.name} has {status.st_size} bytes, its manifest says {entry.bytes}"
            intact = sizes_only or describe(path).sha256 == entry.sha256
        except MISSING as error:
            return f"{entry.name}: {error.strerror or error}"
        return "" if intact else f"{entry.name} does not have the sha256 of its manifest"


Found: TypeAlias = Checkpoint | str | OSError  # a checkpoint, a defect of its manifest, or the error of reading it


def defect_of(found: Found, sizes_only: bool = False) -> str:
    """Return a description of the damage as :meth:`Checkpoint.defect` does, or raise the error of reading."""
    if isinstance(found, OSError):
        raise found
    return found if isinstance(found, str) else found.defect(sizes_only)


def read_manifest(folder: Path) -> Found:
    """Read the manifest in ``folder``, or raise a UserError if its format has a different version."""
    path = folder / MANIFEST
    try:
        raw = read_limited(path, JSON_LIMIT)
        version = parse_json(raw, _Version).format
        if version != FORMAT:
            raise UserError(
                f"{folder} is a checkpoint of format {version}, but this version reads format {FORMAT}: "
                "use the version that wrote it"
            )
        content = parse_json(raw, _Manifest)
    except MISSING as error:
        if folder.is_symlink() and not folder.exists():
            return OSError(errno.ENOENT, f"it is a link to {folder.readlink()}, which is absent")
        return f"{MANIFEST}: {error.strerror or error}"
    except OSError as error:
        return error
    except InvalidJsonError as error:
        return f"{MANIFEST} is not readable: {error}"
    position = content.step if content.position is None else content.position
    return Checkpoint(folder, content.step, content.files, position)


def manifest_content(step: int, position: int, files: list[FileEntry]) -> Mapping[str, Any]:
    """Return the content of manifest.json."""
    return {"format": FORMAT, "step": step, "position": position, "files": [vars(entry) for entry in files]}


def describe(path: Path, tensors: tuple[str, ...] = ()) -> FileEntry:
    """Describe a file by size and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(path.name, file.tell(), digest.hexdigest(), tensors)
