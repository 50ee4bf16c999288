"""Merge several folders of shards into one."""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_tools.quarantine import QUARANTINE, read_quarantine, refuse_foreign_quarantine
from data_tools.reporting import damage_as_user_error, refuse_inside
from motionmae.commands.app import Command
from motionmae.data.open_shards import load_manifest
from motionmae.data.shards.format import ShardEntry, check_size, load_index, write_index
from motionmae.data.shards.manifest import MANIFEST, Manifest, write_manifest
from motionmae.data.shards.publish import current_index
from motionmae.errors import UserError
from motionmae.files import atomic_path, sync, temporary_of, write_atomically
from motionmae.text import say

_SHARD_NAMES = r"merged-\d{6}\.(?:tar|idx\.json)"
_LAST_NAMES = rf"{re.escape(QUARANTINE)}|{re.escape(MANIFEST)}"  # written after the shards
_SHARD = re.compile(rf"{_SHARD_NAMES}|{temporary_of(_SHARD_NAMES)}", re.ASCII)
_LAST = re.compile(rf"{_LAST_NAMES}|{temporary_of(_LAST_NAMES)}", re.ASCII)
"""Names that merge writes, also those that a killed merge left."""

_DESCRIPTION = """\
Merge several folders of shards into one. The folders must have the same frame settings, and they do not change. The
new shards are hard links. They are copies if the new folder is on another disk, or if the disk has no links. The keys
of samples do not change, and may repeat in the shards of another folder: shard and key together are unique."""

_EXAMPLES = """\
examples:
  motionmae shards merge data/toy/train data/toy/val --out data/toy/all
  motionmae shards merge data/k400/train data/ssv2/train --out data/hybrid --without-labels"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, nargs="+", help="folders of shards, in the order of their samples")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--without-labels", action="store_true", help="drop the labels, if the classes differ")


@damage_as_user_error()
def run(arguments: argparse.Namespace) -> int:
    out, folders = arguments.out, arguments.shards
    for folder in (one for one in folders if one.resolve() != out.resolve()):  # merge() refuses a finished folder
        refuse_inside(out, {"the input": folder})
    try:
        merged = merge(folders, out, arguments.without_labels)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}): choose another --out, or free space") from error
    say(f"{out}: {merged.samples} samples in {len(merged.shards)} shards of {len(folders)} folders")
    return 0


def merge(folders: Sequence[Path], out: Path, without_labels: bool = False) -> Manifest:
    """Link all shards into ``out``. The manifest is written last and marks the folder as complete.

    Args:
        out: the new folder. Files that a killed merge left are replaced.
        without_labels: remove the classes from the manifest and the indexes (each KEY.json keeps its class).

    Raises:
        CorruptSample: a shard is missing, truncated or replaced.
        UserError: the folders are incompatible or hold the same shard, or ``out`` is a complete folder of shards.
    """
    manifests = [load_manifest(folder) for folder in folders]
    _check_compatible(folders, manifests, without_labels)
    shards = [(folder, entry) for folder, one in zip(folders, manifests, strict=True) for entry in one.shards]
    paths: dict[str, Path] = {}
    for folder, entry in shards:
        path = folder / entry.name
        if (first := paths.setdefault(entry.sha256, path)) is not path:
            raise UserError(f"{path} and {first} are the same shard: give each folder only once")
    if (out / MANIFEST).exists():
        raise UserError(f"--out {out} is a complete folder of shards: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in _leftovers(out):
        path.unlink()
    entries = tuple(
        _link(folder, entry, out / f"merged-{number:06d}.tar", without_labels)
        for number, (folder, entry) in enumerate(shards)
    )
    sync(out)
    write_atomically(out / QUARANTINE, b"".join(map(read_quarantine, folders)))
    merged = replace(
        manifests[0],
        dataset="+".join(dict.fromkeys(manifest.dataset for manifest in manifests)),
        split="+".join(dict.fromkeys(manifest.split for manifest in manifests)),
        class_names=() if without_labels else manifests[0].class_names,
        shards=entries,
        quarantined=sum(manifest.quarantined for manifest in manifests),
        split_file="+".join(dict.fromkeys(manifest.split_file for manifest in manifests)),
        replaced_matrices={
            video: matrices for manifest in manifests for video, matrices in manifest.replaced_matrices.items()
        },
        split_sha256=hashlib.sha256("".join(manifest.split_sha256 for manifest in manifests).encode()).hexdigest(),
    )
    write_manifest(out, merged)
    return merged


def _leftovers(out: Path) -> list[Path]:
    """Return the files that a killed merge left, perhaps a merge of more folders. Other files raise UserError.

    The shards come last, because the other files are ours only beside shards.
    """
    existing = sorted(out.iterdir())
    shards = {path for path in existing if _SHARD.fullmatch(path.name)}
    for path in existing:
        is_ours = path in shards or (shards and _LAST.fullmatch(path.name))
        if not is_ours or path.is_dir():
            raise UserError(f"--out {out} holds {path.name}, which merge did not write: choose a new folder")
    refuse_foreign_quarantine(out)
    return sorted(existing, key=lambda path: path in shards)


def _check_compatible(folders: Sequence[Path], manifests: Sequence[Manifest], without_labels: bool) -> None:
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        pair = f"{folders[0]} and {folder}"
        for name, title in {"encoder": "frame settings", "versions": "library versions"}.items():
            expected, found = getattr(first, name), getattr(manifest, name)
            if found != expected:
                raise UserError(f"{pair} differ in {title} ({expected}; {found}): make one of the folders again")
        if manifest.class_names != first.class_names and not without_labels:
            raise UserError(f"{pair} have different classes: merge them with --without-labels")


def _link(folder: Path, entry: ShardEntry, to: Path, without_labels: bool) -> ShardEntry:
    """Link or copy the shard of ``entry`` to the name ``to``, write its index, and return the new manifest entry."""
    source = folder / entry.name
    _, columns = load_index(source, entry)
    check_size(source, entry)
    to.unlink(missing_ok=True)
    try:
        os.link(source, to)
    except OSError:  # the folders are on different disks, or the disk has no hard links
        with atomic_path(to) as temporary:
            shutil.copyfile(source, temporary)
    content = json.loads(current_index(source).read_bytes()) | {"name": to.name}
    if without_labels:
        content["columns"] = columns | {"label": [-1] * entry.samples}
    return write_index(to, content)


COMMAND = Command(add_arguments, run, description=_DESCRIPTION, epilog=_EXAMPLES)
