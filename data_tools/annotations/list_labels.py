"""Labels of the entries of lists as class numbers."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from data_tools.annotations.split import UNLABELLED
from data_tools.annotations.video_lists import Entry
from motionmae.errors import UserError
from motionmae.text import excerpt

_WHOLE = re.compile(r"([-+]?[0-9]{1,1000})(?:[.,]0*)?", re.ASCII)  # pandas writes 2.0 if another label is missing
_SCIENTIFIC = re.compile(r"[-+]?[0-9]\.[0-9]+e[-+][0-9]{2}", re.ASCII)  # numpy.savetxt
_FRACTION = re.compile(r"[-+]?[0-9]*[.,][0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", re.ASCII)
_NO_LABEL = frozenset({"", "nan", "<na>"})  # as pandas writes a missing value
_NO_NUMBER = frozenset({"none", "null", "na", "n/a", "-"})  # may also be names of classes
MAX_CLASSES = 1_000_000
_LONGEST_VALUE = 500  # characters; longer arrays have several values


def number_labels(
    entries: Sequence[Entry], names: Mapping[int, str]
) -> tuple[list[int], dict[int, str], tuple[str, ...]]:
    """Return the class number of each entry, the name of each class that has one, and notes.

    Names are numbered as in ``names``, the content of ``classInd.txt``, or else alphabetically.

    Raises UserError if labels are numbers and names mixed, fractions or below -1, or if ``names`` lacks a class.
    """
    texts = list(map(_label_text, entries))
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


def _label_text(entry: Entry) -> str:
    """Return the label of an entry in the composed form (NFC); "" if there is none. Raises UserError for several."""
    text = unicodedata.normalize("NFC", entry.label.strip())
    if text[:1] in ("[", "{"):
        text = _only_value(entry, text)
    if _SCIENTIFIC.fullmatch(text) and float(text).is_integer():
        text = str(int(float(text)))
    return "" if text.lower() in _NO_LABEL else text


def _only_value(entry: Entry, text: str) -> str:
    """Return the value of an array of one value, such as ``[3]`` or ``['run']``, and other texts as they are."""
    try:
        values = json.loads(text.replace("'", '"')) if len(text) < _LONGEST_VALUE else None
    except ValueError:  # a name such as [something]
        return text
    if isinstance(values, list) and len(values) < 2:
        return str(*values)
    raise UserError(f"{entry.where} has several labels: give each video one number or name")


def _refuse_mixture(entries: Sequence[Entry], texts: Sequence[str]) -> None:
    labelled = [(text, entry.where) for text, entry in zip(texts, entries, strict=True) if text]
    numbers = [pair for pair in labelled if _WHOLE.fullmatch(pair[0])]
    others = [pair for pair in labelled if not _WHOLE.fullmatch(pair[0])]
    fractions = [pair for pair in others if _FRACTION.fullmatch(pair[0])]
    if fractions and (numbers or len(fractions) == len(others)):
        text, where = fractions[0]
        raise UserError(f"{where}: the label {text[:40]} is not a whole number: give each class a number or a name")
    if numbers and others:
        (number, place), (name, where) = numbers[0], others[0]
        problem = f"the label {excerpt(name, 40)!r} is a name, but {number} ({place}) a number"
        raise UserError(f"{where}: {problem}: use names or numbers for all classes")


def _parse_number(entry: Entry, text: str) -> int:
    match = _WHOLE.fullmatch(text)
    number = int(match[1]) if match else UNLABELLED
    if number < UNLABELLED:
        raise UserError(f"{entry.where}: the label {number} is below -1, which means no label: number classes from 0")
    if number >= MAX_CLASSES:
        label = f"label {excerpt(text, 30)} is not a class number"
        raise UserError(f"{entry.where}: {label}: put the class last in each line")
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
    if len(missing) == len(entries) and entries:
        return (f"no video has a label, as {entries[0].where} shows",)
    if not missing:
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


def note_on_similar(class_names: Iterable[str]) -> tuple[str, ...]:
    """Return a note if classes differ only in their case, blanks, hyphens or ``_``."""
    first: dict[str, str] = {}
    for name in class_names:
        other = first.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()).strip(), name)
        if other != name:
            pair = f"the classes {excerpt(other, 40)!r} and {excerpt(name, 40)!r} have almost the same name"
            return (f"{pair} and two numbers: write it in one way if they are one class",)
    return ()
