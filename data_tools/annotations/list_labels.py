"""Labels of the entries of lists as class numbers."""

import re
from collections.abc import Mapping, Sequence

from data_tools.annotations.split import UNLABELLED
from data_tools.annotations.video_lists import Entry
from motionmae.errors import UserError
from motionmae.text import excerpt

_WHOLE = re.compile(r"([-+]?[0-9]{1,18})(?:[.,]0*)?", re.ASCII)  # pandas writes 2.0 if another label is missing
_FRACTION = re.compile(r"[-+]?[0-9]*[.,][0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", re.ASCII)
_NO_LABEL = frozenset({"", "nan", "<na>"})  # as pandas writes a missing value
_NO_NUMBER = frozenset({"none", "null", "na", "n/a", "-"})  # may also be names of classes
MAX_CLASSES = 1_000_000


def number_labels(
    entries: Sequence[Entry], names: Mapping[int, str]
) -> tuple[list[int], dict[int, str], tuple[str, ...]]:
    """Return the class number of each entry, the name of each class that has one, and notes.

    Names are numbered as in ``names``, the content of ``classInd.txt``, or else alphabetically.

    Raises UserError if labels are numbers and names mixed, fractions or below -1, or if ``names`` lacks a class.
    """
    texts = ["" if entry.label.strip().lower() in _NO_LABEL else entry.label.strip() for entry in entries]
    are_numbers = any(map(_WHOLE.fullmatch, texts))
    if are_numbers:
        texts = ["" if text.lower() in _NO_NUMBER else text for text in texts]
    _refuse_mixture(entries, texts)
    notes = _note_on_missing(entries, texts)
    if are_numbers:
        numbers = [_parse_number(entry, text) for entry, text in zip(entries, texts, strict=True)]
        known = dict(names) or _names_of_numbers(entries, numbers)
        _refuse_unknown(entries, numbers, names)
        return numbers, known, (*notes, *_note_on_first_class(numbers, names))
    known = dict(names) or dict(enumerate(sorted(set(texts) - {""})))
    number_of = {name: number for number, name in known.items()}
    for entry, text in zip(entries, texts, strict=True):
        if text and text not in number_of:
            lacking = f"classInd.txt lacks the class {excerpt(text, 60)!r} of {excerpt(entry.source)}"
            raise UserError(f"{entry.where}: {lacking}: add the class there")
    return [number_of.get(text, UNLABELLED) for text in texts], known, notes


def _refuse_mixture(entries: Sequence[Entry], texts: Sequence[str]) -> None:
    number = next((n for n, text in enumerate(texts) if _WHOLE.fullmatch(text)), None)
    other = next((n for n, text in enumerate(texts) if text and not _WHOLE.fullmatch(text)), None)
    fraction = next(
        (n for n, text in enumerate(texts) if _FRACTION.fullmatch(text) and not _WHOLE.fullmatch(text)), None
    )
    if fraction is not None and (number is not None or all(_FRACTION.fullmatch(text) for text in texts if text)):
        label = f"the label {texts[fraction][:40]} is not a whole number"
        raise UserError(f"{entries[fraction].where}: {label}: give each class a number or a name")
    if number is not None and other is not None:
        pair = (
            f"the label {excerpt(texts[other], 40)!r} is a name, but {texts[number]} ({entries[number].where}) a number"
        )
        raise UserError(f"{entries[other].where}: {pair}: use names or numbers for all classes")


def _parse_number(entry: Entry, text: str) -> int:
    match = _WHOLE.fullmatch(text)
    number = int(match[1]) if match else UNLABELLED
    if number < UNLABELLED:
        raise UserError(f"{entry.where}: the label {number} is below -1, which means no label: number classes from 0")
    if number >= MAX_CLASSES:
        raise UserError(f"{entry.where}: label {number} is not a class number: put the class last in each line")
    return number


def _names_of_numbers(entries: Sequence[Entry], numbers: Sequence[int]) -> dict[int, str]:
    pairs = zip(entries, numbers, strict=True)
    return {number: entry.class_name for entry, number in pairs if entry.class_name and number != UNLABELLED}


def _refuse_unknown(entries: Sequence[Entry], numbers: Sequence[int], names: Mapping[int, str]) -> None:
    for entry, number in zip(entries, numbers, strict=True):
        if names and number != UNLABELLED and number not in names:
            lacking = f"classInd.txt has no class {number}, only {min(names)} to {max(names)}"
            raise UserError(f"{entry.where}: {lacking}: number the classes alike in both files")


def _note_on_missing(entries: Sequence[Entry], texts: Sequence[str]) -> tuple[str, ...]:
    missing = [entry for entry, text in zip(entries, texts, strict=True) if not text]
    if not missing or len(missing) == len(entries):
        return ()
    return (
        f"{len(missing)} of {len(entries)} videos have no label, the first is {excerpt(missing[0].source)} "
        f"({missing[0].where})",
    )


def _note_on_first_class(numbers: Sequence[int], names: Mapping[int, str]) -> tuple[str, ...]:
    """Return a note if the classes seem to be numbered from 1."""
    used = set(numbers) - {UNLABELLED}
    if names or len(used) < 2 or used != set(range(1, len(used) + 1)):
        return ()
    return (
        f"the labels are 1 to {len(used)}, so that class 0 has no video: subtract 1 if classes are numbered from 1",
    )
