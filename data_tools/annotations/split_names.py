"""Names that data sets give to the folders of splits, which are never classes."""

import functools
import re

ALIASES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "holdout"),
}
"""Names of each split. A folder may add a size, a number or a word: ``train_256``, ``val-320p``, ``test videos``."""

_SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
_WORDS = r"videos?|clips?|data|files?|sets?|splits?|rgb|mini|small|tiny|full|new|resized?|compress(?:ed)?|part|list"
_ADDED = rf"(?:{_WORDS}|\d+p?|\d+x\d+)"
_SETS = r"videos?|clips?|data|rgb|set|split|k\d+|kinetics\d*|ucf\d+|hmdb\d+|ssv2|sthv2|hacs|mit"
_SPLIT = re.compile(rf"(?:(?:{_SETS})_)*({'|'.join(_SPLIT_OF)})(?:_?{_ADDED})*")
_NO_CLASS = re.compile(r"replacements?(?:_.*)?|annotations?|labels?|(?:train_?test_?)?splits?|folds?|compress(?:ed)?")
_NUMBERED = re.compile(r"(?:fold|split|cv|replacement)_?\d+")


@functools.lru_cache(1000)  # lists have a million lines
def split_of(name: str) -> str | None:
    """Return train, val or test if a folder or a ``--split`` is called so, in any usual form; otherwise None."""
    match = _SPLIT.fullmatch(_normalized(name))
    return _SPLIT_OF[match[1]] if match else None


def is_split_folder(name: str) -> bool:
    """Return whether a folder is called like a split, or like another part of a data set that is no class."""
    normalized = _normalized(name)
    return bool(split_of(name) or _NO_CLASS.fullmatch(normalized) or _NUMBERED.fullmatch(normalized))


def is_replacement(name: str) -> bool:
    """Return whether a folder holds better copies of corrupt videos, as the CVDF's ``replacement/`` of Kinetics-400."""
    return name.lower().startswith("replacement")


def _normalized(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.strip().lower())
