"""Where files live: a local path or an ``s3://`` address behind one interface (``pyarrow.fs``), to read and write."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pyarrow import fs


class PathError(ValueError):
    """A path or address that names no file system we can use; the message says what would be accepted."""


def resolve_path(path: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """The file system behind ``path`` and the path inside it.

    Local paths (also ``file://`` and ``~``) come back absolute and normalised; ``s3://bucket/key`` as ``bucket/key``.
    Credentials, region and endpoint of s3 come from the standard AWS environment variables and profiles, never from
    the address: it is stored with the job.

    Raises ``PathError`` for another scheme, an address without a bucket, one that carries credentials, or an
    endpoint that is none.
    """
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return fs.LocalFileSystem(), _absolute(text)
    if scheme == "file":
        return fs.LocalFileSystem(), _absolute(unquote(urlsplit(text).path))
    if scheme != "s3":
        raise PathError(f"{scheme}:// is not supported: give a local path or s3://bucket/key")
    return s3_filesystem(), _key(rest)


def is_s3(filesystem: fs.FileSystem) -> bool:
    """Whether files are objects of a bucket: no rename, no folders, a write appears whole or not at all."""
    return isinstance(filesystem, fs.S3FileSystem)


def is_local(filesystem: fs.FileSystem) -> bool:
    """Whether files lie in this machine's own tree, so that links, fsync and rename are to be had."""
    return isinstance(filesystem, fs.LocalFileSystem)


def s3_filesystem() -> fs.S3FileSystem:
    """The S3 file system the environment describes now: ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, region."""
    environ = os.environ
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or ""
    return _connect(endpoint, region, environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_PROFILE", ""))


@functools.lru_cache(maxsize=8)
def _connect(endpoint: str, region: str, access_key: str, profile: str) -> fs.S3FileSystem:
    # The key and the profile only tell connections apart; the AWS client finds and renews credentials itself.
    del access_key, profile
    options: dict[str, str] = {}
    if endpoint:
        address = _endpoint(endpoint)
        options = {"endpoint_override": address.netloc + address.path.rstrip("/"), "scheme": address.scheme}
    if region or endpoint:
        # A named region also spares a self-hosted endpoint the look-up at amazonaws.com.
        options["region"] = region or "us-east-1"
    return fs.S3FileSystem(**options, connect_timeout=10, request_timeout=60, allow_delayed_open=True)


def _endpoint(text: str) -> SplitResult:
    try:
        address = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:
        address = urlsplit("")
    if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
        # Without repeating it: someone may have put a password there.
        raise PathError("AWS_ENDPOINT_URL is no address of an S3 server: write https://HOST or http://HOST:PORT")
    return address


def _absolute(text: str) -> str:
    if not text:
        raise PathError("an empty path names no file")
    if "\0" in text:
        raise PathError("a path cannot hold a NUL character")
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 - resolve() would follow links


def _key(rest: str) -> str:
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise PathError("an s3:// address must not carry credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not bucket:
        raise PathError("an s3:// address needs a bucket: s3://bucket/key")
    # "a//b" is a key of its own for S3, but pyarrow refuses it; nobody names one on purpose.
    return "/".join(part for part in (bucket, *key.split("/")) if part)
