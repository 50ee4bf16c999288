"""Files of a user, with names that resemble those of the product's files, and what a folder holds."""

import stat
from pathlib import Path

NAMES = (
    "README.md~", "config.json.bak", "config.yaml.orig", "model.safetensors.tmp", "motionmae.json.old",
    "notes.jsonl", "events.jsonl.1", "metrics-mine.jsonl", "lease.json.old", "job.json.old", ".lease.lock.old",
    "encoder-mine.safetensors", "train-000000.tar.bak", "train-000000.idx.json.old", "merged-results.csv",
    "merged-000000.tar.old", "quarantine.jsonl.orig", "retry-notes", "lock.notes-of-mine", "lock.1of2.txt",
    "manifest.json.tmp", "manifest.json.old", "plan.json.old", "cache_key.json.bak", "toy.json.old",
    "train.csv.old", "report.html.old", "reconstruction.png.old", "figures.json.tmp.mine", "predictions.csv.old",
    "0.json.bak", "demo-7.json.old", "tiny-0.json.old", "step-00000100-best-keep.zip", ".figures.json.mine.tmp",
    "stop.md", "save.txt",
)  # fmt: skip
"""Names that resemble those of the product's files, but are none of them."""


FOLDERS = ("step-notes", "step-00000100-best-keep", "step-00000500.backup", ".unfinished-notes", "damaged-notes")
"""Names that resemble those of the product's folders, but are none of them."""


def sow(folder: Path) -> None:
    """Put foreign files of every kind into ``folder`` and all folders below it."""
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    for place in places:
        if (place / NAMES[0]).exists() or place.name in FOLDERS:
            continue
        for number, name in enumerate(NAMES):
            (place / name).write_text(f"the only copy of {name}")
            (place / name).chmod((0o600, 0o640, 0o444)[number % 3])
        for name in FOLDERS:
            (place / name).mkdir()
            (place / name / "0.json").write_text(f"the only copy of {name}")
        (place / "latest.link").symlink_to("step-notes")
        (place / "dangling.link").symlink_to("nowhere")


def contents(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Mode and bytes of every file, and the target of every link, by path below ``folder``."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in folder.rglob("*"):
        content: bytes | str | None = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = stat.S_IMODE(path.lstat().st_mode), content
    return found


def sown(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """The part of :func:`contents` that :func:`sow` made."""
    ours = {*NAMES, *FOLDERS, "latest.link", "dangling.link"}
    return {name: found for name, found in contents(folder).items() if ours & set(Path(name).parts)}


MINE = (b"my own text", b'{"name": "my own figures"}', b"\x89PNG\r\n\x1a\nmy own picture", b"PKmy own archive")
"""Contents of a user's files of several formats."""
