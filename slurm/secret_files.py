"""Detection of files that look like a key or a password, which the copy of the code in a run folder leaves out."""

import re
from pathlib import Path

_END = r"([.~].*)?"
_KEY = re.compile(
    rf"(.+)?\.env(rc)?{_END}|.+\.(pem|key|p12|pfx|p8|ppk|jks|keystore|kdbx|gpg|asc){_END}"
    r"|(.*_)?id_(rsa|dsa|ecdsa|ed25519|xmss)([_.~-].*)?|ssh_host_.*_key"
    rf"|[._](netrc|pypirc|pgpass|htpasswd|git-credentials|npmrc|dockercfg|boto|s3cfg|my\.cnf){_END}|kubeconfig.*"
    r"|\.dockerconfigjson|kaggle\.json|rclone\.conf|env\.(local|production)|service[_-]?account.*\.json|\.\w+_history"
    r"|\.(ssh|aws|gnupg|kube|docker|azure|secrets)|secrets",
    re.IGNORECASE,
)
"""Name of a key, or of a folder of keys."""
_PASSWORD = r"(credential|secret|passw(or)?d|api[_-]?key|token|(wandb|access|auth|private|hf|aws)[_-]?key)s?"
_DATA = re.compile(rf".*(credential|secret|passw(or)?d|api[_-]?key).*|(.*[_.-])?{_PASSWORD}{_END}", re.IGNORECASE)
_SOURCE = re.compile(rf"(.*[_.-])?{_PASSWORD}\.\w+", re.IGNORECASE)
_SOURCES = {".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".h", ".js", ".css", ".html", ".md", ".rst", ".sh"}
_PRIVATE_KEY = rb"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File-|AGE-SECRET-KEY-1)"
_HEADER = re.compile(_PRIVATE_KEY)
_IN_LINE = re.compile(rb"(^[-+ ]?\s*|private_?key[\"']?\s*[:=]\s*[\"']?)" + _PRIVATE_KEY, re.MULTILINE | re.IGNORECASE)
_TOKEN = re.compile(
    rb"\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{36}|github_pat_\w{22}|glpat-[\w-]{20}|hf_[A-Za-z]{34}|xox[bp]-[\w-]{20})"
    rb"|^\s*(export\s+)?\w*(API_?KEY|SECRET(_\w+)?|TOKEN|PASSWORD)=[\"']?(?=.*[a-zA-Z])[\w./+=:@-]{5,}[\"']?\s*$",
    re.MULTILINE,
)
"""Tokens of well-known services, and assignments of a shell script."""
_READ_BYTES = 5_000_000


def looks_secret(root: Path, path: Path, *, tracked: bool, installed: bool = False) -> bool:
    """Return whether the file ``path`` of the folder ``root`` must not be copied.

    A link is judged by its target too, and must not leave ``root``; some installers link the files of a package to
    their cache (``installed``). Source code in git keeps a name such as ``credentials.py``, as other code imports it. A
    file that is not in git must hold no token either.
    """
    target = (root / path).resolve()
    inside = target.is_relative_to(root.resolve())
    if not inside and not installed:
        return True
    names = (path, target.relative_to(root.resolve()) if inside else Path(target.name))
    if any(has_secret_name(each, tracked) for each in names):
        return True
    with target.open("rb") as file:
        content = file.read(_READ_BYTES)
    if not tracked and _TOKEN.search(content):
        return True
    if tracked and path.suffix.lower() in _SOURCES:  # code that recognises keys may quote their first line
        return _HEADER.match(content.lstrip(b"\xef\xbb\xbf \t\r\n")) is not None
    return _HEADER.search(content) is not None


def has_secret_name(path: Path, tracked: bool) -> bool:
    """Return whether a folder or the file in ``path`` has the name of a key or a password."""
    if any(_KEY.fullmatch(part) for part in path.parts):
        return True
    if path.suffix.lower() in _SOURCES:
        return not tracked and _SOURCE.fullmatch(path.name) is not None
    return _DATA.fullmatch(path.name) is not None


def holds_private_key(text: bytes) -> bool:
    """Return whether a diff holds a private key, as lines or as the value of a setting."""
    return _IN_LINE.search(text) is not None
