"""MNIST and EMNIST from their official idx files: gzip, plain, or inside the official zip."""

from __future__ import annotations

import contextlib
import gzip
import os
import string
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from stn.tool.config import UserError, absolute
from stn.tool.data import CHARACTERS, MERGED, Dataset, Split

IMAGES, LABELS = 3, 1  # number of dimensions, the last byte of the magic number
KINDS = {IMAGES: "images", LABELS: "labels"}
SUBFOLDERS = ("", "gzip", "emnist", "mnist", "raw", "EMNIST/raw", "MNIST/raw", "EMNIST", "MNIST")
ARCHIVES = ("gzip.zip", "emnist.zip", "EMNIST.zip")

LARGEST = 4 << 30  # bytes; eight times the largest official file
CHUNK = 4 << 20  # bytes read at a time
DEFLATE_LIMIT = 1040  # deflate cannot shrink anything by more than a factor of 1032

CLASS_NAMES = {
    "mnist": string.digits,
    "emnist/byclass": CHARACTERS,
    "emnist/bymerge": MERGED,
    "emnist/balanced": MERGED,
    "emnist/letters": string.ascii_uppercase,
    "emnist/digits": string.digits,
    "emnist/mnist": string.digits,
}
FIRST_LABEL = {"emnist/letters": 1}  # the others count from 0


@dataclass(frozen=True)
class _File:
    """A file that was found.

    Attributes:
        title: Its name in messages.
        open: Opens its bytes, still compressed if they are.
        size: Number of these bytes.
        compressed: Whether its name says gzip.
    """

    title: str
    open: Callable[[], contextlib.AbstractContextManager[BinaryIO]]
    size: int
    compressed: bool


def read(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    splits: Sequence[str],
    mirror: str | None = None,
) -> Dataset:
    """Read MNIST or a part of EMNIST; EMNIST, which is stored transposed, is turned upright.

    Args:
        name: `"mnist"` or `"emnist/..."`.
        data_dir: Folder with the official idx files, with or without `.gz`, or with the official
            `gzip.zip` of EMNIST; also looked for in sub-folders such as `gzip` and `emnist`. None
            downloads them.
        splits: Any of `"train"` and `"test"`.
        mirror: Base URL to download from.

    Returns:
        The data set.

    Raises:
        UserError: If a file is missing, damaged, or is not what its name says.
    """
    if data_dir is None:
        from stn.tool.data import download

        folder = download.fetch(name, splits=splits, mirror=mirror)
    else:
        folder = absolute(data_dir)
    parts = {split: _read_split(name, folder, split) for split in splits}
    return Dataset(name, tuple(CLASS_NAMES[name]), parts.get("train"), parts.get("test"))


def stems(name: str, split: str) -> tuple[str, str]:
    """The official names of a split's images and labels, without `.gz`."""
    if name == "mnist":
        start = {"train": "train", "test": "t10k"}[split]
    else:
        start = f"{name.replace('/', '-')}-{split}"
    return f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"


def _read_split(name: str, folder: Path, split: str) -> Split:
    images_file, labels_file = (_find(folder, stem, name) for stem in stems(name, split))
    with (
        _decoded(labels_file, LABELS) as (label_stream, (label_count,)),
        _decoded(images_file, IMAGES) as (image_stream, (count, height, width)),
    ):
        if count != label_count:
            raise UserError(
                f"Expected as many images as labels. Received: {count} images in "
                f"{images_file.title} and {label_count} labels in {labels_file.title}. "
                "Get both files again, from the same place"
            )
        labels = np.empty(count, np.int32)
        for start, values in _rows(label_stream, labels_file, (count,)):
            labels[start : start + len(values)] = values
        labels -= FIRST_LABEL.get(name, 0)
        _check_labels(labels, name, split, labels_file)

        upright = name == "mnist"
        images = np.empty((count, height, width, 1) if upright else (count, width, height, 1), "u1")
        for start, values in _rows(image_stream, images_file, (count, height, width)):
            values = values if upright else values.transpose(0, 2, 1)
            images[start : start + len(values), :, :, 0] = values
    return Split(images, labels)


def _check_labels(labels: np.ndarray, name: str, split: str, file: _File) -> None:
    classes, first = len(CLASS_NAMES[name]), FIRST_LABEL.get(name, 0)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(
            f"Expected labels from {first} to {first + classes - 1} for {name!r}. Received: "
            f"{labels[wrong[0]] + first} as label number {wrong[0]} of {file.title}. "
            "Check that the file belongs to this data set"
        )
    if split == "train" and labels.min() == labels.max():
        raise UserError(
            "Expected training images of at least two classes. Received: only label "
            f"{labels[0] + first} in {file.title}. There is nothing to tell apart: get the file "
            "again"
        )


def _find(folder: Path, stem: str, name: str) -> _File:
    """Find a file by its official name, in any of the places and forms that are accepted."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(
            f"Expected a readable folder with the files of {name!r}. Received: "
            f"{str(folder)!r} ({error.strerror}). Check --data-dir, or leave it out to download"
        ) from error

    dotted = stem.replace("-idx", ".idx")
    names = [stem, f"{stem}.gz", dotted, f"{dotted}.gz"]
    places = [path for part in SUBFOLDERS if (path := folder / part).is_dir()]
    for place in places:
        for candidate in names:
            path = place / candidate
            if path.is_file():
                return _File(
                    str(path),
                    lambda path=path: path.open("rb"),
                    path.stat().st_size,
                    path.suffix == ".gz",
                )
    if name != "mnist":
        for place in places:
            for candidate in ARCHIVES:
                archive = place / candidate
                if archive.is_file() and (found := _find_member(archive, names)):
                    return found
        names += [f"{archive} with one of these in it" for archive in ARCHIVES]
    raise UserError(
        f"Expected a file of {name!r}: {', '.join(names)}. Received: {str(folder)!r}, which has "
        "none of them, nor have its sub-folders "
        f"{', '.join(part for part in SUBFOLDERS if part)}. Check --data-dir, or leave it out to "
        "download"
    )


def _find_member(archive: Path, names: Sequence[str]) -> _File | None:
    with _explained(f"{archive}"), zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if Path(member.filename).name in names:
                title = f"{archive} / {member.filename}"
                break
        else:
            return None

    @contextlib.contextmanager
    def open_member() -> Iterator[BinaryIO]:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
            yield cast(BinaryIO, stream)

    # The size in the zip's directory is a claim; what the zip itself takes bounds it.
    size = min(member.file_size, archive.stat().st_size * DEFLATE_LIMIT)
    return _File(title, open_member, size, member.filename.endswith(".gz"))


@contextlib.contextmanager
def _explained(title: str) -> Iterator[None]:
    """Say in the user's terms what is wrong with a file."""
    again = "Get the file again"
    try:
        yield
    except EOFError as error:
        raise UserError(
            f"Expected a whole file. Received: {title}, which ends too early. {again}"
        ) from error
    except gzip.BadGzipFile as error:
        raise UserError(
            f"Expected a gzip file. Received: {title} ({error}). {again}, or correct its name"
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(
            f"Expected a whole zip file. Received: {title} ({error}). {again}"
        ) from error
    except zlib.error as error:
        raise UserError(
            f"Expected an undamaged file. Received: {title} ({error}). {again}"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile: unknown method, or encrypted
        raise UserError(
            f"Expected a plain zip file. Received: {title} ({error}). {again}"
        ) from error
    except OSError as error:
        raise UserError(f"Expected a readable file. Received: {title} ({error})") from error


@contextlib.contextmanager
def _decoded(file: _File, kind: int) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """Open a file behind its header and give the dimensions, checked against its size."""
    with _explained(file.title), file.open() as raw:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if file.compressed else raw
        with contextlib.closing(stream):
            shape = _read_header(stream, file, kind)
            yield stream, shape


def _read_header(stream: BinaryIO, file: _File, kind: int) -> tuple[int, ...]:
    magic = stream.read(4)
    if magic != bytes((0, 0, 8, kind)):
        if len(magic) < 4:
            what = "which is empty" if not magic else "which ends too early"
        elif magic[:2] == b"\x1f\x8b":
            what = "which is compressed by gzip: append .gz to its name"
        elif magic[:3] == b"\0\0\x08" and magic[3] in KINDS:
            what = f"which holds {KINDS[magic[3]]}: it has the wrong name"
        else:
            what = f"which starts with {magic.hex(' ')}"
        raise UserError(
            f"Expected an idx file of {KINDS[kind]}, starting with 00 00 08 {kind:02x}. "
            f"Received: {file.title}, {what}. Get the file again"
        )
    header = stream.read(4 * kind)
    if len(header) < 4 * kind:
        raise EOFError
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    if 0 in shape:
        raise UserError(
            f"Expected an idx file of at least one of the {KINDS[kind]}. Received: {file.title}, "
            f"whose header says {shape}. Get the file again"
        )
    # Before anything is allocated: could so many bytes be in this file at all?
    declared = int(np.prod([float(size) for size in shape]))
    possible = file.size * DEFLATE_LIMIT if file.compressed else file.size - 4 - 4 * kind
    if declared > min(possible, LARGEST):
        raise UserError(
            f"Expected {declared} bytes of {KINDS[kind]} after the header {shape}. Received: "
            f"{file.title}, which cannot hold them. Get the file again"
        )
    return shape


def _rows(
    stream: BinaryIO, file: _File, shape: tuple[int, ...]
) -> Iterator[tuple[int, np.ndarray]]:
    """Read the values in chunks of whole rows, each with the index of its first one."""
    count, item = shape[0], int(np.prod(shape[1:]))
    step = max(1, CHUNK // item)
    for start in range(0, count, step):
        rows = min(step, count - start)
        data = stream.read(rows * item)
        if len(data) < rows * item:
            raise UserError(
                f"Expected {count * item} bytes after the header {shape}. Received: "
                f"{start * item + len(data)} in {file.title}, which is cut off. Get the file again"
            )
        yield start, np.frombuffer(data, np.uint8).reshape(rows, *shape[1:])
    # Reading past the end also makes gzip and zip compare their checksums.
    if stream.read(1):
        raise UserError(
            f"Expected {count * item} bytes after the header {shape}. Received: more than that "
            f"in {file.title}. Get the file again"
        )
