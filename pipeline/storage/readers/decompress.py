"""Input files as buffered byte streams, unpacked on the way; memory stays at some buffers whatever the file holds."""

from __future__ import annotations

import io
import re
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.storage.readers.base import DamagedError, InputError, InputFile

BUFFER = 1 << 18
REQUEST = 1 << 20  # bytes asked of the file system at a time; s3 answers each request in tens of milliseconds


def open_raw(file: InputFile) -> Watched:
    """The file's own bytes. Opening and reading raise ``InputError`` where the file system fails."""
    try:
        raw = file.fs.open_input_stream(file.path, compression=None, buffer_size=max(1, min(REQUEST, file.bytes)))
    except OSError as error:
        raise InputError(f"{file.name} cannot be read: {reason_of(error)}") from error
    return Watched(raw, file.name)


def open_stream(file: InputFile) -> BinaryIO:
    """The file's bytes, unpacked. Reading raises ``DamagedError`` where they cannot be unpacked any further."""
    return cast(BinaryIO, io.BufferedReader(_Stream(file), BUFFER))


def reason_of(error: OSError) -> str:
    """What went wrong, without the path pyarrow repeats."""
    said = error.strerror or str(error).splitlines()[0]
    detail = re.search(r"Detail: \[errno \d+\] (.+)", said)
    return detail[1] if detail else said


class _Stream(io.RawIOBase):
    """Tells damage (wrong bytes: one bad row) from trouble (the disk or the network failed: the job must not go on)."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.raw = open_raw(file)
        self.stream: Any = self.raw
        if file.compression:
            # pyarrow rather than gzip and zstandard: checks sums, reads members on end, and notices a cut zstd frame.
            self.stream = pa.CompressedInputStream(pa.PythonFile(self.raw, mode="r"), file.compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except OSError as error:
            if self.raw.error:
                raise self.raw.error from error
            raise DamagedError(str(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.raw.close()
        super().close()


class Watched(io.RawIOBase):
    """A stream that remembers its own failure, which pyarrow would hand on as any OSError."""

    def __init__(self, stream: Any, name: str) -> None:
        self.stream = stream
        self.name = name
        self.error: InputError | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether the stream below can be read from anywhere."""
        return cast(bool, self.stream.seekable())

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a byte."""
        return cast(int, self.stream.seek(offset, whence))

    def tell(self) -> int:
        """The byte that is read next."""
        return cast(int, self.stream.tell())

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes. Raises ``InputError``, and keeps it, if the file system fails."""
        try:
            return cast(bytes, self.stream.read(size))
        except OSError as error:
            self.error = InputError(f"{self.name} cannot be read: {reason_of(error)}")
            raise self.error from error

    def close(self) -> None:
        """Close the stream below, once."""
        if not self.closed:
            self.stream.close()
        super().close()
