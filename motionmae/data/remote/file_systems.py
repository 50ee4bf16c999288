"""File systems of fsspec for each URL scheme of shards, and what their errors mean.

Credentials come from the environment and from the files of each cloud's own tools. They are in no config, and messages
show errors without the query and the user of a URL.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec

from motionmae.config.data import REMOTE_SCHEMES
from motionmae.errors import UserError
from motionmae.text import excerpt, get_logger

OBJECT_STORES = ("s3", "gs", "az")
"""Schemes whose files are read by ranges. The others are HTTP."""
TEMPORARY_STATUS = (408, 425, 429)
"""HTTP client errors that may be temporary."""

_STREAM_BYTES = 16 << 20  # bytes that are read ahead of a stream
_CONNECTIONS = 100  # most at the same time, as for http; the default of botocore is 10
_TRANSPORT = ("aiohttp", "aiobotocore", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google", "requests")
"""Packages whose exceptions are connection errors."""
_EXTRAS = {"http": "remote", "https": "remote", "s3": "remote", "gs": "gcs", "az": "azure"}
_CREDENTIALS = {
    "http": "~/.netrc",
    "https": "~/.netrc",
    "s3": "the AWS_* environment",
    "gs": "the file that GOOGLE_APPLICATION_CREDENTIALS names",
    "az": "the AZURE_STORAGE_* environment",
}
_REFUSED_CREDENTIALS = (  # names of exceptions without an HTTP status
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
    "CredentialUnavailableError",
)
_LONGEST = 300  # characters of an error in a message


def is_remote(folder: object) -> bool:
    return "://" in str(folder)


def check_url(url: str) -> None:
    """Raise UserError if a URL is not the plain address of a folder.

    Other schemes are rejected because some schemes of fsspec run programs, user names because URLs are written to logs
    and run folders, and queries because file names are appended to URLs.
    """
    parts = urlsplit(url)
    if parts.scheme not in REMOTE_SCHEMES:
        raise UserError(f"shards cannot be read from {url}: give a folder, or a URL of {', '.join(REMOTE_SCHEMES)}")
    if not parts.netloc:
        raise UserError(f"the shard URL {url} has no host or bucket: write {parts.scheme}://NAME/FOLDER")
    if "@" in parts.netloc:
        raise UserError(
            f"the URL of shards at {parts.hostname} holds a user name, and URLs are written to logs: put the user name "
            f"into {_CREDENTIALS[parts.scheme]}"
        )
    if parts.query or parts.fragment:
        raise UserError(
            f"the URL of shards at {parts.hostname} ends in a query or fragment: give the plain address of the folder"
        )


def open_file_system(scheme: str, timeout: float) -> Any:
    """Create an fsspec file system that does not retry, and fails after ``timeout`` seconds without data.

    Raises UserError if its package, or the name of an Azure account, is missing.
    """
    makers = {"s3": _s3, "gs": _google, "az": _azure}
    try:
        return makers.get(scheme, partial(_http, scheme))(timeout)
    except ImportError as error:
        raise UserError(
            f"reading {scheme}:// shards needs extra packages ({error}): pip install 'motionmae[{_EXTRAS[scheme]}]'"
        ) from error


def open_stream(location: str, timeout: float = 30.0) -> BinaryIO:
    """Open a local file or a URL, to be read once from front to back. No location can run a program.

    Raises UserError for a scheme or a form that :func:`check_url` refuses, and the errors of fsspec.
    """
    if not is_remote(location):
        return Path(location).open("rb")
    check_url(location)
    scheme = urlsplit(location).scheme
    block = _STREAM_BYTES if scheme in OBJECT_STORES else 0  # 0: one request, also for servers without ranges
    return cast(BinaryIO, open_file_system(scheme, timeout).open(location, "rb", block_size=block))


def _s3(timeout: float) -> Any:
    settings = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
    settings["max_pool_connections"] = _CONNECTIONS
    system = fsspec.filesystem("s3", config_kwargs=settings, use_listings_cache=False, skip_instance_cache=True)
    system.retries = 1
    return system


def _google(timeout: float) -> Any:
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
    options = {"requests_timeout": limits, "use_listings_cache": False, "skip_instance_cache": True}
    system = fsspec.filesystem("gs", **options)
    system._request = partial(type(system)._request.__wrapped__, system)  # without its retries and their log
    return system


def _azure(timeout: float) -> Any:
    get_logger("azure").setLevel(logging.WARNING)  # it logs the headers of each request
    seconds = max(1, round(timeout))
    options = {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        system = fsspec.filesystem("az", connection_timeout=seconds, read_timeout=seconds, **options)
    except ValueError:  # its text may quote the connection string
        raise UserError(
            "az:// shards need the name of the storage account: set AZURE_STORAGE_ACCOUNT_NAME, or a valid "
            "AZURE_STORAGE_CONNECTION_STRING"
        ) from None
    system.service_client._config.retry_policy.total_retries = 0
    return system


def _http(scheme: str, timeout: float) -> Any:
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
    # auto_decompress: a few compressed bytes could unpack to gigabytes; trust_env: proxies and ~/.netrc are used
    options = {"timeout": limits, "auto_decompress": False, "trust_env": True}
    return fsspec.filesystem(scheme, client_kwargs=options, skip_instance_cache=True)


def describe(error: BaseException) -> str:
    """Return the type and the text of an error on one line, without the secrets of a URL."""
    return excerpt(" ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split()), _LONGEST)


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error of any of the file systems; 0 if it has none."""
    found = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((int(value) for value in found if isinstance(value, (int, str)) and str(value).isdigit()), 0)


def is_refusal(error: BaseException) -> bool:
    """Return whether an error means that this machine may not read the file."""
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden")  # gcsfs, for HTTP 403
    known = isinstance(error, PermissionError) or type(error).__name__ in _REFUSED_CREDENTIALS
    return known or forbidden or status_of(error) in (401, 403)


def is_bad_request(error: BaseException) -> bool:
    """Return whether a server refuses a request for good."""
    status = status_of(error)
    of_gcsfs = isinstance(error, ValueError) and str(error).startswith("Bad Request")
    return of_gcsfs or (400 <= status < 500 and status not in TEMPORARY_STATUS)


def is_connection_error(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _TRANSPORT
