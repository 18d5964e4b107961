"""A zip or tar of a folder of images by class, read where it lies: nothing is unpacked to disk, and no link is followed."""

from __future__ import annotations

import contextlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError, caused_by
from onnxspect.engine.readers.file_bytes import digest_of
from onnxspect.engine.readers.labels import of_words
from onnxspect.engine.readers.limits import limits
from onnxspect.engine.readers.listing import Listing, Store, by_folder, listing
from onnxspect.engine.readers.reader import Asked

#: Bytes of one file in an archive at most, as a picture.
MEMBER = 512 * 2**20
#: Bytes that all files of an archive may take unpacked.
UNPACKED = 256 * 2**30
#: Bytes of a tar's extended header, which is read into memory as a whole.
_HEADER = 2**20
_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
)


class _Member(tarfile.TarInfo):
    """A member whose extended headers are bounded."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # read by tarfile for every header
        plain = self.type in tarfile.SUPPORTED_TYPES and self.type not in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
        )
        if not plain and self.size > _HEADER:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def open_file(path: Path, asked: Asked) -> Listing | None:
    """A zip or tar of images by class; None for another file, an npz among them.

    Raises:
        OnnxspectError: damaged, too large, or without images in class folders.
    """
    try:
        if zipfile.is_zipfile(path):
            return None if path.suffix.lower() == ".npz" else _of_zip(path, asked)
        if path.suffix.lower() in (".npz", ".npy") or not tarfile.is_tarfile(path):
            return None
        return _of_tar(path, asked)
    except OnnxspectError:
        raise
    except _ERRORS as error:
        line = printable((str(error).splitlines() or [type(error).__name__])[0], 120)
        raise caused_by(error, f"{path}: not a readable archive ({line})", "copy or fetch it again") from error


def _of_zip(path: Path, asked: Asked) -> Listing | None:
    archive = zipfile.ZipFile(path)
    named = (e for e in archive.infolist() if e.filename)  # is_dir trips over a member without a name
    entries = {e.filename: e for e in named if not e.is_dir() and (e.external_attr >> 28) != 0o12}
    if entries and all(name.endswith(".npy") for name in entries):
        archive.close()
        return None
    limits().check_files(len(entries), str(path))
    _bounded(path, ((e.filename, e.file_size) for e in entries.values()))

    def store(name: str) -> IO[bytes]:
        with _named(path, name), archive.open(entries[name]) as stream:
            return _whole(stream, path, name)

    return _listed(path, list(entries), asked, store)


def _of_tar(path: Path, asked: Asked) -> Listing:
    archive = tarfile.open(path, "r:*", tarinfo=_Member)  # noqa: SIM115 - open as long as its reader
    members: dict[str, tarfile.TarInfo] = {}
    left_out, total = 0, 0
    for member in archive:
        total += member.size
        _bounded(path, [(member.name, total if member.isdir() else min(total, UNPACKED + 1))], UNPACKED)
        if member.isreg() and not member.issparse():
            _bounded(path, [(member.name, member.size)])
            members[member.name.removeprefix("./")] = member
        elif not member.isdir():
            left_out += 1
        limits().check_files(len(members) + left_out, str(path))
    said = [f"{left_out} links and other entries that are no plain files were left out"] if left_out else []

    def store(name: str) -> IO[bytes]:
        with _named(path, name):
            stream = archive.extractfile(members[name])
            if stream is None:
                raise OnnxspectError(
                    f"{path}: {printable(name)} is no plain file",
                    "archives of plain files alone are read: unpack it yourself, and give the folder",
                )
            return _whole(stream, path, name)

    return _listed(path, list(members), asked, store, said)


def _listed(path: Path, names: list[str], asked: Asked, store: Store, said: list[str] | None = None) -> Listing:
    found = by_folder(names, asked.training, str(path))
    labelled = of_words(found.words, asked.classes, str(path))
    notes = [*(said or []), *found.notes]
    return listing("an archive of images by class", path, found.files, labelled, store, digest_of(path), notes)


def _bounded(path: Path, sizes: Iterator[tuple[str, int]] | list[tuple[str, int]], most: int = MEMBER) -> None:
    total = 0
    for name, size in sizes:
        total += size
        if size > most or total > UNPACKED:
            raise OnnxspectError(
                f"{path}: {printable(name)} takes it to {max(size, total):,} bytes unpacked, more than the limit of "
                f"{min(most, UNPACKED):,}",
                "unpack it yourself, and give the folder",
            )


@contextlib.contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """Errors of the archive's libraries as one of ours that names the member."""
    try:
        yield
    except OnnxspectError:
        raise
    except (*_ERRORS, RuntimeError) as error:  # RuntimeError: an encrypted member
        line = printable((str(error).splitlines() or [type(error).__name__])[0], 120)
        raise caused_by(
            error, f"{path}: {printable(name)} cannot be read ({line})", "unpack it yourself, and give the folder"
        ) from error


def _whole(stream: IO[bytes], path: Path, name: str) -> IO[bytes]:
    """A member in memory: as much as a picture may have, whatever its header says."""
    data = stream.read(MEMBER + 1)
    if len(data) > MEMBER:
        raise OnnxspectError(
            f"{path}: {printable(name)} is larger than {MEMBER:,} bytes",
            "no picture is so large: unpack it yourself, and give the folder",
        )
    return io.BytesIO(data)
