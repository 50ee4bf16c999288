"""Detection of files that look like a key or a password, which the copy of the code in a run folder leaves out."""

import re
from pathlib import Path

_END = r"([.~].*)?"
_KEY = re.compile(
    rf"(.+)?\.env(rc)?{_END}|.+\.(pem|key|p12|pfx|p8|ppk|jks|keystore|kdbx|gpg|asc){_END}"
    r"|(.*_)?id_(rsa|dsa|ecdsa|ed25519|xmss)([_.~-].*)?|ssh_host_.*_key"
    rf"|[._](netrc|pypirc|pgpass|htpasswd|git-credentials|npmrc|dockercfg|boto|s3cfg|my\.cnf){_END}|kubeconfig.*"
    r"|\.(ssh|aws|gnupg|kube|docker|azure|secrets)|secrets",
    re.IGNORECASE,
)
"""Name of a key, or of a folder of keys."""
_PASSWORD = r"(credential|secret|passw(or)?d|api[_-]?key|token|(wandb|access|auth|private|hf|aws)[_-]?key)s?"
_DATA = re.compile(rf".*(credential|secret|passw(or)?d|api[_-]?key).*|(.*[_.-])?{_PASSWORD}{_END}", re.IGNORECASE)
_SOURCE = re.compile(rf"(.*[_.-])?{_PASSWORD}\.\w+", re.IGNORECASE)
_SOURCES = {".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".h", ".js", ".css", ".html", ".md", ".rst", ".sh"}
_PRIVATE_KEY = rb"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File-|AGE-SECRET-KEY-1)"
_HEADER, _HEADER_LINE = re.compile(_PRIVATE_KEY), re.compile(rb"^[-+ ]?\s*" + _PRIVATE_KEY, re.MULTILINE)
_HEADER_BYTES = 4096


def looks_secret(root: Path, path: Path, *, tracked: bool, installed: bool = False) -> bool:
    """Return whether the file ``path`` of the folder ``root`` must not be copied.

    A link is judged by its target too, and must not leave ``root``; some installers link the files of a package to
    their cache (``installed``). Source code in git keeps a name such as ``credentials.py``, as other code imports it.
    """
    target = (root / path).resolve()
    inside = target.is_relative_to(root.resolve())
    if not inside and not installed:
        return True
    names = (path, target.relative_to(root.resolve()) if inside else Path(target.name))
    if any(has_secret_name(each, tracked) for each in names):
        return True
    with target.open("rb") as file:
        start = file.read(_HEADER_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    if path.suffix.lower() in _SOURCES:
        return _HEADER.match(start) is not None
    return holds_private_key(start)


def has_secret_name(path: Path, tracked: bool) -> bool:
    """Return whether a folder or the file in ``path`` has the name of a key or a password."""
    if any(_KEY.fullmatch(part) for part in path.parts):
        return True
    if path.suffix.lower() in _SOURCES:
        return not tracked and _SOURCE.fullmatch(path.name) is not None
    return _DATA.fullmatch(path.name) is not None


def holds_private_key(text: bytes) -> bool:
    """Return whether a line of a text, or of a diff, begins a private key."""
    return _HEADER_LINE.search(text) is not None
