"""Types of untrusted texts that become lines of a job script, arguments of Slurm, names or paths.

A validator raises ValueError with the remedy. :func:`motionmae.config.refusals.describe_refusal` adds the key.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from motionmae.errors import UserError
from motionmae.text import URL_QUERY, URL_USER, printable

LONGEST_TEXT = 4000
"""Characters. Longer paths do not exist on Linux."""
LONGEST_NAME = 255
"""Bytes of a file name."""
LONGEST_RUN_NAME = 150
"""Bytes. Names of files and jobs are made of a run's name."""

_BRACKETS = r"\[\d[\d,-]*\]"
_HOSTS = rf"(\w[\w.-]*({_BRACKETS}[\w.-]*)*)"
_NODE_VARIABLE = re.compile(r"\w*(TMPDIR|SCRATCH(_?DIR)?)|TMP|TEMP|JOBFS|WORK|HOME|USER|SLURM_(ARRAY_)?(JOB|TASK)_?ID")
"""Variables that are expanded anywhere in a path: a node's folders, the user and the job.

Any other variable may hold a secret, and other users can see a path. At the beginning of a path it is therefore
expanded only if it holds the path of a folder, and elsewhere never.
"""
_REFERENCE = re.compile(r"\$(?:(\w+)|\{(\w+)\})?")


def without_control(text: str) -> str:
    """Return ``text`` if it is one line without control characters."""
    if printable(text) == text:
        return text
    character = next(character for character in text if printable(character) != character)
    what = "a line break" if character in "\n\r\x85\u2028\u2029" else f"the control character {character!a}"
    raise ValueError(f"it holds {what}; write one line of plain text")


def one_line(text: str) -> str:
    """Return ``text`` if it is one line of at most LONGEST_TEXT characters without control characters."""
    without_control(text)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"it has {len(text)} characters; write at most {LONGEST_TEXT}")
    return text


def without_password(text: str) -> str:
    """Return ``text`` if no URL in it holds a user name, because configs are copied into cards, reports and logs."""
    if URL_USER.search(text):
        raise ValueError("its URL holds a user name; put it into ~/.netrc (http) or the AWS_* environment (s3)")
    return text


def sbatch_text(text: str) -> str:
    """Return ``text`` if it is one line without a backslash, which sbatch and the shell read differently."""
    if "\\" in one_line(text):
        raise ValueError("it holds a backslash, which sbatch misreads; leave it out")
    return text


def _of_form(pattern: str, expected: str) -> AfterValidator:
    """Return a validator of ASCII texts that match ``pattern`` in full. ``expected`` says what to write instead."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text) or len(text) > LONGEST_TEXT:
            raise ValueError(f"write {expected}")
        return text

    return AfterValidator(check)


OneLine = Annotated[str, AfterValidator(one_line)]
VariableValue = Annotated[str, AfterValidator(without_control)]
SbatchText = Annotated[str, AfterValidator(sbatch_text)]
"""Value of an option of sbatch or srun."""
SbatchOption = Annotated[str, _of_form("[a-z][a-z0-9-]*", "a long option of sbatch, such as mem")]
Variable = Annotated[str, _of_form(r"[A-Za-z_]\w*", "a variable's name, such as NCCL_DEBUG")]
JobId = Annotated[str, _of_form(r"(\w[\w.+-]{0,63})?", "the number of a job")]
NodeName = Annotated[str, _of_form(r"\w[\w.-]{0,254}", "the name of a node: letters, digits, '.', '_' and '-'")]
GpuType = Annotated[str, _of_form(r"([A-Za-z][\w.-]*)?", "a type of GPU as Slurm names it, such as a100")]
NodeSuffix = Annotated[str, _of_form(r"[\w.-]{0,64}", "letters, digits, '.', '_' and '-', such as -ib0")]
"""End of a node's name, or name of a network interface."""
HostList = Annotated[str, _of_form(rf"({_HOSTS}(,{_HOSTS})*)?", "names of nodes as a Slurm host list: node[3-4],node7")]


def run_name(name: str) -> str:
    """Return ``name`` if it is empty, or can be a folder, a job name and a part of file names."""
    if name and (name[0] in "-." or not all(c.isalnum() or c in "-_." for c in name)):
        raise ValueError("use letters, digits, '-', '_' and '.', and do not start with '-' or '.'")
    if len(name.encode()) > LONGEST_RUN_NAME:
        raise ValueError(f"use at most {LONGEST_RUN_NAME} bytes; a letter such as ä takes two")
    return name


def check_path(path: str, kind: str) -> None:
    """Raise ValueError if ``path`` cannot exist, or names a variable that is not expanded.

    Args:
        kind: ``node`` for a path that :func:`node_path` expands, ``url`` for a path or a URL, else a local path.
    """
    if kind == "node":
        unknown = [found[0] for found in _REFERENCE.finditer(path) if not (_is_allowed(found) or _is_first(found))]
        if unknown:
            raise ValueError(
                f"{unknown[0]} is not expanded, only a folder's variable at the beginning, and variables such as "
                "$USER and $SLURM_JOB_ID; write the path itself"
            )
    elif "${" in path or re.match(r"\$\w", path):
        raise ValueError("no variable is expanded here; write the path itself, or let the shell expand key=value")
    if kind == "url" and "://" in path:
        if URL_QUERY.search(path):
            raise ValueError("its URL has a query or fragment, which may be a secret; write the folder's plain address")
        return
    if any(len(part.encode()) > LONGEST_NAME for part in path.split("/")):
        raise ValueError(f"a name in a path has at most {LONGEST_NAME} bytes")
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"this machine has no user {path.partition('/')[0]}; write the path itself") from None


def node_path(path: str) -> Path:
    """Return a configured path with the variables of this node expanded.

    Raises UserError if a variable is not the path of a folder. The message does not show the value.
    """

    def value(found: re.Match[str]) -> str:
        text = os.environ.get(_name(found), "")
        if not text or not (_is_allowed(found) or (_is_first(found) and _is_folder(text))):
            raise UserError(f"{path} names {found[0]}, which is no folder on this node: write the path itself")
        return text

    return Path(_REFERENCE.sub(value, path)).expanduser()


def _is_allowed(reference: re.Match[str]) -> bool:
    return _NODE_VARIABLE.fullmatch(_name(reference)) is not None


def _is_first(reference: re.Match[str]) -> bool:
    return reference.start() == 0 and bool(_name(reference)) and reference.string[reference.end() :][:1] in ("", "/")


def _is_folder(text: str) -> bool:
    """Return whether ``text`` is an absolute path that exists, or that can be created below a folder other than /."""
    folder = Path(text)
    try:
        return folder.is_absolute() and (folder.is_dir() or (len(folder.parts) > 2 and folder.parent.is_dir()))
    except OSError:
        return False


def _name(reference: re.Match[str]) -> str:
    return reference[1] or reference[2] or ""
