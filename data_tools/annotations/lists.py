"""Reader of list files: csv in every usual form, plain lines, JSON and JSON lines become one :class:`Table`.

``csv.Sniffer`` guesses from the frequency of characters, and takes a letter of the file names for the separator where
a list has one column. Here a header decides on the separator, or else each line does (``list_lines.py``).
"""

import codecs
import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from data_tools.annotations.list_json import read_json_table
from data_tools.annotations.list_lines import SEPARATORS, LineSplit, has_video_name, split_line
from motionmae.errors import UserError
from motionmae.json_text import InvalidJsonError, read_limited
from motionmae.text import excerpt

LIST_BYTES = 256 << 20
"""Largest size of a list. The lists of Kinetics-700 have 30 MB."""

PATH_COLUMNS = (
    *("path", "video_path", "videopath", "file_path", "filepath", "clip_path", "relative_path", "rel_path"),
    *("full_path", "abs_path", "absolute_path", "path_to_video", "video_file", "videofile", "file", "filename"),
    *("file_name", "fname", "video_filename", "video_file_name", "video_name", "videoname", "clip_name", "clipname"),
    *("video", "videos", "clip", "clips", "video_id", "videoid", "vid", "clip_id", "clipid", "narration_id", "uid"),
    *("name", "id"),
    *("source", "src", "location", "uri", "youtube_id", "ytid", "paths", "files", "filenames"),
)
"""Names of the column with the video, the most telling first."""
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "class_label", "category", "category_name"),
    *("action", "action_name", "action_label", "action_class", "activity", "activity_name", "gesture", "label_name"),
    *("target", "targets", "y", "tag", "ground_truth", "gt", "gt_label", "verb", "verb_class", "noun", "noun_class"),
    *("label_id", "label_idx", "label_index", "label_num", "class_id", "class_idx", "class_index", "class_num"),
    *("labelid", "classid", "classes", "category_id", "action_id", "action_idx", "activity_id"),
    *("target_id", "target_class"),
)
"""Names of the column with the class."""
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "fold_name", "usage")

WITHOUT_LABEL = re.compile(
    r"|fps|duration|length|width|height|(num_|n_|total_)?frames?|frame_count|size|bytes|md5|sha256|url"
    rf"|unnamed:_[0-9]+|index|id|{'|'.join(SPLIT_COLUMNS)}"
)
"""Columns that say nothing of the class. "Unnamed: 0" is the index of pandas."""

_FOREIGN = (
    (b"\0\5\x16\7", "a file in which macOS keeps attributes (AppleDouble)", "give the file without `._` in its name"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with `git lfs pull`"),
    (b"PK\3\4", "an Excel workbook or a zip archive", "save it as csv, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save it as csv"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it with gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with unzstd"),
    (b"PAR1", "a Parquet file", "write it as csv (pandas.read_parquet, to_csv)"),
    (b"\x93NUMPY", "a NumPy array", "write it as csv"),
    (b"\x89HDF", "an HDF5 file", "write it as csv"),
    (b"SQLite format 3", "a database", "export it as csv"),
    (b"%PDF", "a PDF document", "write it as csv"),
    *(
        (bytes([0x80, protocol]), "a Python pickle", "write it as csv, because a pickle can run code")
        for protocol in range(2, 6)
    ),
)
"""First bytes of files that are no list, what they are, and the remedy."""
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as the mark of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at U+2028 and U+0085, which names may hold
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that ``surrogateescape`` has kept
_MARK_OF_LINE = re.compile("^\ufeff+", re.MULTILINE)  # also in later lines, if several files were joined
_BLANKS = " \t\r\n\f\v"
_NUMERIC = re.compile(r"[-+]?[0-9.,]+")
_EMPTY = re.compile(r"[,;|\s]*")  # rows of a spreadsheet without values
_TITLE_LINES = 10  # lines above a header that are searched
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)


class Row(NamedTuple):
    """Row of a list."""

    number: int  # line of the file, or entry of a JSON file; from 1
    cells: tuple[str, ...]  # one for each column; without a header, the line alone


@dataclass(frozen=True)
class Table:
    """Content of a list."""

    path: Path
    columns: tuple[str, ...]  # in lower case, with _ for blanks; empty if the list has no header
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # sentences on what was guessed
    unit: str = "line"  # what ``Row.number`` counts

    def where(self, row: Row) -> str:
        """Return the place of a row for a message."""
        return f"{self.path}, {self.unit} {row.number}"

    @property
    def records(self) -> list[dict[str, str]]:
        """The rows by the names of their columns; empty if the list has no header."""
        return [dict(zip(self.columns, row.cells, strict=True)) for row in self.rows] if self.columns else []


def read_text(path: Path) -> str:
    """Return the text of a list in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Bytes that are not UTF-8 become surrogates, because file names may hold them. Raises UserError if the file cannot
    be read, is no text, or is larger than LIST_BYTES.
    """
    try:
        content = read_limited(path, LIST_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions and its disk") from error
    except InvalidJsonError as error:
        raise UserError(f"{path} cannot be read ({error}): give the list that you downloaded") from error
    for start, kind, remedy in _FOREIGN:
        if content.startswith(start):
            raise UserError(f"{path} is not a list but {kind}: {remedy}")
    if _PAGE.match(content):
        raise UserError(f"{path} is not a list but a web page: download the file itself")
    try:
        encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)
        text = content.decode(encoding or "utf-8", errors="strict" if encoding else "surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error.reason}): save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} is not a UTF-8 text, perhaps UTF-16: save it as UTF-8")
    return _MARK_OF_LINE.sub("", text)


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a text that are not empty, see :func:`read_text`."""
    return [line for _, line in _numbered(read_text(path))]


def _numbered(text: str) -> list[tuple[int, str]]:
    lines = enumerate(_LINE_END.split(text), start=1)
    return [(number, line) for number, line in ((number, line.strip(_BLANKS)) for number, line in lines) if line]


def read_table(path: Path, is_video: Callable[[str], bool] = lambda name: False) -> Table:
    """Read a list with or without a header. Lines that begin with ``#`` are comments.

    Args:
        is_video: whether a name is that of an existing video. It decides whether a first line such as ``video 0`` is
            a header or names a video.

    Raises UserError if the list cannot be read or has rows of different lengths.
    """
    text = read_text(path)
    notes = _note_on_encoding(path, text)
    found = read_json_table(path, text, lambda keys: _is_title(map(column_name, keys)))
    if found is not None:
        columns, entries = found
        numbered = tuple(Row(number, cells) for number, cells in enumerate(entries, start=1))
        return Table(path, tuple(map(column_name, columns)), numbered, notes, "entry")
    lines = [(number, line) for number, line in _numbered(text) if not _EMPTY.fullmatch(line)]
    separator = _SEPARATOR_LINE.fullmatch(lines[0][1]) if lines else None  # Excel writes and reads this line
    lines, comments = _without_comments(lines[bool(separator) :], is_video)
    notes = (*notes, *_note_on_comments(path, comments))
    if not lines:
        return Table(path, (), (), notes)
    start = _find_header_below_title(lines, is_video)
    if start:
        title = excerpt(lines[0][1], 60)
        notes = (*notes, f"{path} begins with {title!r}; its header is line {lines[start][0]}")
    lines = lines[start:]
    number, first = lines[0]
    header = _parse_header(first, separator[1] if separator else "")
    if header is not None and _names_video(first, is_video):
        taken = f"the first line of {path}, {excerpt(first, 60)!r}, looks like a header and is taken for a video"
        header, notes = None, (*notes, f"{taken}, because the file exists")
    if header is None:
        return _read_plain(path, lines, notes, is_video)
    separator_of_header, columns = header
    if separator_of_header == " ":
        rows = [_align(path, row, columns) for row in lines[1:]]
    else:
        rows = _read_csv(path, text, number, separator_of_header, is_video)
    return _even(Table(path, columns, tuple(rows), notes))


def column_name(text: str) -> str:
    """Return the title of a column in lower case, with ``_`` for blanks and hyphens."""
    return re.sub(r"[\s\-_]+", "_", text.strip().lower())


def _note_on_encoding(path: Path, text: str) -> tuple[str, ...]:
    if not (found := _NOT_UTF8.search(text)):
        return ()
    number = text.count("\n", 0, found.start()) + 1
    return (f"{path} is not UTF-8 from line {number} on: save it as UTF-8 if names are wrong or missing",)


def _without_comments(
    lines: Sequence[tuple[int, str]], is_video: Callable[[str], bool]
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the lines that begin with ``#`` apart from all others, among which are names that begin so."""
    comments = [
        line for line in lines if line[1][0] == "#" and not any(is_video(way.name) for way in _ways_with_mark(line[1]))
    ]
    numbers = {number for number, _ in comments}
    return [line for line in lines if line[0] not in numbers], comments


def _ways_with_mark(line: str) -> list[LineSplit]:
    return [way for way in split_line(line) if way.name[0] == "#"]


def _note_on_comments(path: Path, comments: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    videos = [number for number, line in comments if has_video_name(line)]
    if not videos:
        return ()
    count = f"{len(videos)}, first line {videos[0]}"
    return (f"lines of {path} that name videos but begin with # are left out: {count}",)


def _find_header_below_title(lines: Sequence[tuple[int, str]], is_video: Callable[[str], bool]) -> int:
    """Return the place of a header with videos and labels below lines of other text; 0 if there is none."""
    for place, (_, line) in enumerate(lines[:_TITLE_LINES]):
        if has_video_name(line) or _names_video(line, is_video):
            return 0
        header = _parse_header(line, "")
        if header is not None:
            return place if set(LABEL_COLUMNS) & set(header[1]) else 0
    return 0


def _names_video(line: str, is_video: Callable[[str], bool]) -> bool:
    return any(is_video(split.name) for split in split_line(line))


def _parse_header(line: str, separator: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the separator and the columns of a header; None if the line is none. A header has no number."""
    best: tuple[int, str, tuple[str, ...]] | None = None
    if has_video_name(line):
        return None
    for candidate in separator or (*SEPARATORS, " "):
        try:
            (cells,) = csv.reader([line], delimiter=candidate, skipinitialspace=True)
        except (csv.Error, ValueError):
            continue
        columns = tuple(map(column_name, cells))
        known = sum(name in PATH_COLUMNS or name in LABEL_COLUMNS for name in columns)
        if candidate == " " and not all(map(_is_known, columns)):  # a sentence
            continue
        if _is_title(columns) and (best is None or known > best[0]):
            best = (known, candidate if len(cells) > 1 else " ", columns)
    return best[1:] if best else None


def _is_known(column: str) -> bool:
    return column in PATH_COLUMNS or column in LABEL_COLUMNS or WITHOUT_LABEL.fullmatch(column) is not None


def _is_title(columns: Iterable[str]) -> bool:
    names = list(columns)
    return any(name in PATH_COLUMNS for name in names) and not any(map(_NUMERIC.fullmatch, names))


def _read_csv(path: Path, text: str, header: int, separator: str, is_video: Callable[[str], bool]) -> list[Row]:
    """Read the rows below the header, which is in the line ``header``, with the csv module."""
    body = _LINE_END.split(text)[header:]
    reader = csv.reader((f"{line}\n" for line in body), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[Row] = []
    try:
        for cells in reader:
            stripped = tuple(cell.strip(_BLANKS) for cell in cells)
            if any(stripped) and (stripped[0][:1] != "#" or is_video(stripped[0])):
                rows.append(Row(header + reader.line_num, stripped))
    except csv.Error as error:
        line = header + reader.line_num
        raise UserError(f"{path} is not a csv file ({error}): correct the quotes of line {line} or before") from error
    return rows


def _even(table: Table) -> Table:
    """Give every row one cell for each column. Empty cells at the end are dropped; missing cells are empty.

    Rows that repeat the header, as joined files have them, are left out.
    """
    width = len(table.columns)
    rows = [
        Row(row.number, row.cells if any(row.cells[width:]) else (*row.cells, *[""] * width)[:width])
        for row in table.rows
        if not _is_header(row.cells, table.columns)
    ]
    if rows and all(len(row.cells) == width + 1 for row in rows):  # R and pandas write an index without a title
        return replace(table, columns=("", *table.columns), rows=tuple(rows))
    for row in rows:
        if len(row.cells) > width:
            counts = f"has {len(row.cells)} values, but the header has {width}"
            raise UserError(f"{table.where(row)} {counts}: put names that hold a separator into double quotes")
    return replace(table, rows=tuple(rows))


def _is_header(cells: Sequence[str], columns: Sequence[str]) -> bool:
    """Return whether a row repeats the header. Most rows differ in their first cell."""
    titles = zip_longest(cells, columns, fillvalue="")
    return all(column_name(cell) == column for cell, column in titles)


def _align(path: Path, line: tuple[int, str], columns: Sequence[str]) -> Row:
    """Split a line at blanks. Its name may hold blanks as well if it is the first or the last column."""
    number, text = line
    if len(columns) == 1:
        return Row(number, (text.strip('"'),))
    (cells_of_csv,) = csv.reader([text], delimiter=" ", skipinitialspace=True)
    if '"' in text and len(columns) <= len(cells_of_csv) <= len(columns) + 1:
        return Row(number, tuple(cells_of_csv))
    for split in split_line(text):
        cells = (*split.before, split.name, *split.after)
        if len(cells) == len(columns) and columns[len(split.before)] in PATH_COLUMNS:
            return Row(number, cells)
    if len(cells_of_csv) != len(columns):
        counts = f"has {len(cells_of_csv)} values, but the header has {len(columns)}"
        raise UserError(f"{path}, line {number} {counts}: put names that hold blanks into double quotes")
    return Row(number, tuple(cells_of_csv))


def _read_plain(
    path: Path, lines: Sequence[tuple[int, str]], notes: tuple[str, ...], is_video: Callable[[str], bool]
) -> Table:
    """Return the lines of a list without a known header. A first line unlike all others is taken for a header."""
    rows = tuple(Row(number, (line,)) for number, line in lines)
    first, *others = (line for _, line in lines)
    if others and _is_unlike(first, others) and not _names_video(first, is_video):
        taken = (
            f"the first line of {path}, {excerpt(first, 60)!r}, is taken for a header, because it is unlike the others"
        )
        return Table(path, (), rows[1:], (*notes, taken))
    return Table(path, (), rows, notes)


def _is_unlike(first: str, others: Sequence[str]) -> bool:
    """Return whether the first line alone has no name of a video, or alone is a single word."""
    if has_video_name(first):
        return False
    is_only_word = _is_word(first) and not any(map(_is_word, others))
    return is_only_word or all(map(has_video_name, others))


def _is_word(line: str) -> bool:
    return not has_video_name(line) and not any(way.after for way in split_line(line))
