"""Read tars of videos as img2dataset and video2dataset write them: ``KEY.mp4`` with ``KEY.json``, ``.txt``, ``.cls``.

The webdataset library reads the members and groups them to samples. Its ``gopen`` is not used: it runs shell commands
for ``pipe:`` and for http URLs. Local tars are opened as files, and URLs with fsspec, as shards are.

The videos are unpacked into ``OUT/.make_shards/tars``, and then decoded like those of a folder. A file of each tar,
written last, lists its samples, so that a killed command continues with the next tar. When the shards are finished, the
videos that are stored are deleted, while those in the quarantine stay for ``--retry``.
"""

import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import braceexpand
from pydantic import StringConstraints

from data_tools.annotations import Split, VideoRecord
from data_tools.annotations.list_labels import note_on_similar, number_labels
from data_tools.annotations.video_lists import Entry
from data_tools.make_shards.shard_plan import STATE
from motionmae.data.remote.file_systems import check_url, is_remote, open_stream
from motionmae.data.video.read_video import VIDEO_SUFFIXES
from motionmae.errors import UserError
from motionmae.files import write_atomically
from motionmae.json_text import InvalidJsonError, JsonModel, load_json, parse_json
from motionmae.text import excerpt

NAME = "webdataset"
MAX_TARS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)")
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?\d{1,18})?", re.ASCII)
_LABEL_KEYS = ("label", "class", "class_name", "category")
_LONGEST_TEXT = 10_000  # characters of a caption
_TRIES = 3


class _Sample(JsonModel):
    source: str  # tar and key
    file: Annotated[str, StringConstraints(pattern=r"^[0-9]{8}\.[a-z0-9]{2,5}$")]  # name in the folder of the tar
    label: str  # number or name; empty if the sample has none
    caption: str = ""


class _UnpackedTar(JsonModel):
    """Content of ``NUMBER.json``, which marks a tar as unpacked."""

    url: str
    samples: tuple[_Sample, ...]


def expand_shards(pattern: str) -> list[str]:
    """Return the tars of a brace pattern, several joined by ``::``, of a local glob pattern, or of a folder.

    Raises UserError if there is none, or a URL has a scheme that is not read.
    """
    tars: list[str] = []
    for part in pattern.split("::"):
        if _most_names(part) > MAX_TARS:
            raise UserError(f"--shards {excerpt(part)} names more than {MAX_TARS} tars: write a smaller range")
        try:
            expanded = list(braceexpand.braceexpand(part))
        except ValueError as error:
            raise UserError(
                f"--shards {excerpt(part)} is no brace pattern ({error}): write NAME{{000..099}}.tar"
            ) from None
        tars += itertools.chain.from_iterable(map(_locate, expanded))
    if not tars:
        raise UserError(f"--shards {excerpt(pattern)} names no tar: give a folder of tars, or a pattern")
    if twice := next((tar for tar, following in itertools.pairwise(sorted(tars)) if tar == following), ""):
        raise UserError(f"--shards names {excerpt(twice)} twice: name each tar once")
    return tars


def _most_names(pattern: str) -> int:
    """Return an upper limit of the number of names, because braceexpand makes a whole range at once."""
    count = 1
    for group in _BRACES.findall(pattern):
        bounds = _RANGE.fullmatch(group)
        count *= abs(int(bounds[2]) - int(bounds[1])) + 1 if bounds else group.count(",") + 1
        if count > MAX_TARS:
            break
    return count


def _locate(tar: str) -> list[str]:
    if is_remote(tar):
        folder, _, name = tar.rpartition("/")
        check_url(folder)
        return [f"{folder}/{name}"]
    if tar.startswith("pipe:") or "|" in tar:
        raise UserError(f"--shards {excerpt(tar)} would run a program, which is never done: give a path or a URL")
    path = Path(tar)
    if path.is_dir():
        return sorted(map(str, path.glob("*.tar")))
    if "*" in path.name:
        return sorted(map(str, path.parent.glob(path.name)))
    if not path.is_file():
        raise UserError(f"--shards: the tar {excerpt(tar)} does not exist: check the pattern")
    return [tar]


def read_tars(
    pattern: str, out: Path, label_from: str, name: str, show: Callable[[int, int], None] = lambda tars, videos: None
) -> Split:
    """Unpack the tars that are not unpacked yet, and return their videos.

    Args:
        label_from: ``cls``, ``txt``, ``json:KEY`` or ``none``; by default a ``.cls`` member, else a usual key of
            ``.json``.
        name: name of the split.
        show: called with the numbers of finished tars and of videos.

    Raises UserError if a tar cannot be read, or holds no video.
    """
    tars = expand_shards(pattern)
    folder = out / STATE / "tars"
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = []
    for number, tar in enumerate(tars):
        unpacked.append(_unpack(tar, folder, number, label_from))
        show(number + 1, sum(len(record.samples) for record in unpacked))
    entries = []
    for number, record in enumerate(unpacked):
        for sample in record.samples:
            path = folder / f"{number:06d}" / sample.file
            entries.append(Entry(sample.source, path, sample.label, "", sample.source))
    if not entries:
        raise UserError(f"the tars of --shards {excerpt(pattern)} hold no video: they need members such as KEY.mp4")
    numbers, name_of, notes = number_labels(entries, {})
    records = []
    captions = [sample.caption for record in unpacked for sample in record.samples]
    for entry, label, caption in zip(entries, numbers, captions, strict=True):
        class_name = name_of.get(label, "" if label < 0 else str(label))
        records.append(VideoRecord(entry.source, entry.path, label, class_name, caption=caption))
    class_names = tuple(name_of.get(label, str(label)) for label in range(1 + max([-1, *name_of, *numbers])))
    description = f"{len(tars)} tars of --shards {excerpt(pattern)}"
    return Split(tuple(records), class_names, name, description, notes=(*notes, *note_on_similar(class_names)))


def forget_stored(out: Path, quarantined: Sequence[str]) -> None:
    """Delete the unpacked videos, except those that are quarantined."""
    folder, kept = out / STATE / "tars", set(quarantined)
    for path in sorted(folder.glob("[0-9]*.json")):
        for sample in load_json(path, _UnpackedTar).samples:
            if sample.source not in kept:
                (folder / path.stem / sample.file).unlink(missing_ok=True)
        if (folder / path.stem).is_dir() and not any((folder / path.stem).iterdir()):
            (folder / path.stem).rmdir()


def _unpack(tar: str, folder: Path, number: int, label_from: str) -> _UnpackedTar:
    """Return the samples of a tar, after writing its videos to ``folder/NUMBER`` unless that is done."""
    record, videos = folder / f"{number:06d}.json", folder / f"{number:06d}"
    if record.is_file():
        try:
            found = load_json(record, _UnpackedTar)
        except InvalidJsonError as error:
            raise UserError(f"{record} is damaged ({error}): choose another --out, or delete {folder}") from error
        if found.url != tar:
            raise UserError(
                f"{folder.parents[1]} was started with the tar {excerpt(found.url)} where --shards now names "
                f"{excerpt(tar)}: choose another --out, or give the same --shards"
            )
        return found
    for attempt in range(_TRIES):
        shutil.rmtree(videos, ignore_errors=True)
        videos.mkdir()
        try:
            samples = tuple(_write_samples(tar, videos, label_from))
            break
        except UserError:
            raise
        except Exception as error:  # of tarfile, fsspec or the file system; a connection may be cut
            if attempt == _TRIES - 1 or not is_remote(tar):
                raise UserError(f"the tar {excerpt(tar)} cannot be read ({excerpt(error)}): copy it again") from error
    found = _UnpackedTar(url=tar, samples=samples)
    write_atomically(record, found.model_dump_json().encode())
    return found


def _write_samples(tar: str, videos: Path, label_from: str) -> Iterator[_Sample]:
    from webdataset import tariterators  # imports torch, slowly

    stem = PurePosixPath(tar).name.removesuffix(".tar")
    with open_stream(tar) as stream:
        files = tariterators.tar_file_expander([{"url": tar, "stream": stream}], select_files=_is_wanted)
        for number, sample in enumerate(tariterators.group_by_keys(files)):
            members = {suffix.rpartition(".")[2]: content for suffix, content in sample.items() if suffix[:2] != "__"}
            kind = next((suffix for suffix in members if f".{suffix}" in VIDEO_SUFFIXES), "")
            if not kind:
                continue
            file = f"{number:08d}.{kind}"  # the names in a tar are a stranger's
            try:
                (videos / file).write_bytes(members[kind])
            except OSError as error:
                raise UserError(f"{videos} cannot be written ({error.strerror}): free space, and repeat") from error
            source = f"{stem}/{excerpt(sample['__key__'], 200)}.{kind}"
            facts = _parse_facts(members.get("json"))
            caption = _text(members.get("txt")) or str(facts.get("caption") or "")[:_LONGEST_TEXT]
            yield _Sample(source=source, file=file, label=_label(members, facts, label_from, source), caption=caption)


def _is_wanted(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in VIDEO_SUFFIXES or suffix in (".json", ".txt", ".cls")


def _label(members: dict[str, bytes], facts: dict[str, Any], label_from: str, where: str) -> str:
    kind, _, key = label_from.partition(":")
    if kind == "none":
        return ""
    if kind in ("cls", "txt"):
        return _text(members.get(kind))
    if kind == "json":
        if key not in facts:
            raise UserError(f"{where} has no key {key!r} in its .json: correct --label-from, which says json:{key}")
        return _scalar(facts[key])
    if "cls" in members:
        return _text(members["cls"])
    return next((_scalar(facts[name]) for name in _LABEL_KEYS if isinstance(facts.get(name), str | int)), "")


def _scalar(value: object) -> str:
    return "" if value is None or isinstance(value, dict | list | bool) else str(value).strip()


def _text(content: bytes | None) -> str:
    return (content or b"").decode(errors="replace").strip()[:_LONGEST_TEXT]


def _parse_facts(content: bytes | None) -> dict[str, Any]:
    """Return the object in a ``.json`` member; empty if there is none, because videos count also without it."""
    try:
        facts = parse_json(content, object) if content else {}
    except InvalidJsonError:
        return {}
    return facts if isinstance(facts, dict) else {}
