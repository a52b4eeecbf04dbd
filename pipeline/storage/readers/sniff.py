"""Is a file what its name says? Its first bytes tell, so that no job turns a PDF into a million rejections."""

from __future__ import annotations

import itertools
import json

from pipeline.storage.readers.base import Compression, DamagedError, InputError, InputFile
from pipeline.storage.readers.decompress import open_raw, open_stream

HEAD = 1 << 16  # bytes looked at
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "Parquet"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"PK\x03\x04", "a ZIP archive (or .xlsx, .docx)"),
    (b"%PDF", "PDF"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GGUF", "a GGUF model"),
    (b"\xff\xfe", "UTF-16 text (save it as UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (save it as UTF-8)"),
)
PACKED: dict[Compression, str] = {"gzip": "gzip", "zstd": "Zstandard"}
ENDINGS = {"gzip": ".gz", "Zstandard": ".zst", "Parquet": ".parquet"}


def looks_like(head: bytes) -> str | None:
    """The binary format these first bytes of a file belong to, or None if they may be text."""
    for magic, what in MAGIC:
        if head.startswith(magic):
            return what
    nuls = head[:8192].count(0)
    # One NUL may be a slip in one row; text in UTF-16 and compiled things are full of them.
    return "binary data" if nuls >= 4 and nuls * 100 > len(head[:8192]) else None


def check_packing(file: InputFile) -> None:
    """Raise ``InputError`` if a ``.gz`` or ``.zst`` is not packed so. An empty file is no gzip file either."""
    if found := wrong_packing(file):
        raise InputError(f"{file.name} {found}")


def wrong_packing(file: InputFile) -> str | None:
    """What a ``.gz`` or ``.zst`` holds instead, or None. Raises ``InputError`` only where it cannot be read at all."""
    if file.compression is None:
        return None
    with open_raw(file) as stream:
        head = stream.read(16)
    skippable = file.compression == "zstd" and head[1:4] == b"\x2a\x4d\x18"
    if looks_like(head) == PACKED[file.compression] or skippable:
        return None
    found = (looks_like(head) or "something else") if head else "nothing: the file is empty"
    return f"is not what its name says: expected {PACKED[file.compression]}, found {found}"


def read_head(file: InputFile) -> bytes:
    """The first ``HEAD`` bytes, unpacked; fewer where the file is damaged (reading it will say so)."""
    check_packing(file)
    head = b""
    with open_stream(file) as stream:
        try:
            while len(head) < HEAD and (more := stream.read1(HEAD - len(head))):  # type: ignore[attr-defined]
                head += more
        except DamagedError:
            pass
    return head


def check_text(file: InputFile) -> bytes:
    """The head of a JSONL or CSV file. Raises ``InputError`` if it is plainly something else."""
    head = read_head(file)
    found = looks_like(head) or _old_line_ends(head)
    found = found or (_not_jsonl(head) if file.format == "jsonl" else _not_csv(head))
    if not found:
        return head
    hint = f"; rename it to end in {ENDINGS[found]}" if found in ENDINGS else ""
    raise InputError(f"{file.name} is not what its name says: expected {file.format.upper()}, found {found}{hint}")


def _old_line_ends(head: bytes) -> str | None:
    lines = [] if b"\n" in head else [line for line in head.split(b"\r") if line.strip()]
    return "lines that end in a carriage return alone: end them in a newline" if len(lines) > 1 else None


def _not_jsonl(head: bytes) -> str | None:
    lines = [line.strip() for line in itertools.islice(head.removeprefix(b"\xef\xbb\xbf").splitlines(), 200)]
    lines = [line for line in lines if line]
    if not lines:
        return None
    if lines[0] == b"{" or lines[0] == b"[" or lines[0].startswith((b"[{", b"[ {")):
        return "one JSON value over the whole file: write one object per line (jq -c '.[]' makes that of an array)"
    if lines[0].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "HTML or XML"
    # One bad line is a bad row; ten lines without a single object are another format.
    if len(lines) >= 10 and not any(line.startswith(b"{") for line in lines):
        return "no JSON object in its first lines, which look like CSV or plain text"
    return None


def _not_csv(head: bytes) -> str | None:
    line = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].strip()
    if line.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "HTML or XML"
    if not line.startswith((b"{", b"[")):
        return None
    try:
        json.loads(line)
    except ValueError:
        return None
    return "JSON Lines; rename it to end in .jsonl"
