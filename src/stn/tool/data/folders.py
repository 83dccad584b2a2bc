"""Images in folders, one per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from stn.tool.config import UserError, absolute
from stn.tool.data import CHANNELS, TEST_FRACTION, Dataset, Split, carve_mask
from stn.tool.images import SUFFIXES, read_image

_Files = list[tuple[Path, int]]  # each with its label


def read(
    path: str | os.PathLike[str],
    *,
    splits: Sequence[str],
    image_size: int | None,
    color: str,
    seed: int,
) -> Dataset:
    """Read a folder that has one sub-folder of images per class.

    If it has `train` or `test` with such sub-folders in them, these are the splits; other folders
    beside them are not read. A split `test` that is missing is drawn from the training images: 20 %
    of every class, chosen by the seed and the names of the files, so that one file more or less
    hardly moves another. Hidden files are skipped, and tables (`.csv`), which some
    data sets keep beside the images of a class.

    Args:
        path: The folder.
        splits: Any of `"train"` and `"test"`; no image of another split is opened.
        image_size: Height and width to resize to, or None if all images have the same size.
        color: `"auto"`, `"grey"` or `"rgb"`.
        seed: Chooses the test images if they have no folder.

    Returns:
        The data set; classes and images are in the order of their names.

    Raises:
        UserError: If the folder has another structure, or a file in it cannot be used.
    """
    root = absolute(path)
    class_names, files = _list_splits(root, splits, seed)
    size = None if image_size is None else (image_size, image_size)
    arrays = stack(
        {
            split: (read_image(file, size=size, channels=CHANNELS[color]) for file, _ in listed)
            for split, listed in files.items()
        },
        {split: [str(file) for file, _ in listed] for split, listed in files.items()},
    )
    made = {
        split: Split(arrays[split], np.array([label for _, label in listed], np.int32))
        for split, listed in files.items()
    }
    return Dataset(f"folder:{path}", class_names, made.get("train"), made.get("test"))


def training_files(path: str | os.PathLike[str], seed: int) -> str | None:
    """See `stn.tool.data.training_files`."""
    root = absolute(path)
    if "test" in _own_splits(root):
        return None
    _, files = _list_splits(root, ("train",), seed)
    return _digest("\n".join(f"{file.parent.name}/{file.name}" for file, _ in files["train"]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def stack(
    images: Mapping[str, Iterable[np.ndarray]], titles: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Join images of one size; all become RGB if any of them, in any split, is.

    Args:
        images: For every split, uint8 arrays `(height, width, channels)` with 1 or 3 channels.
        titles: For every split, what to call each of them in messages.

    Returns:
        For every split, a uint8 array `(count, height, width, channels)`.

    Raises:
        UserError: If two images differ in size.
    """
    arrays: dict[str, np.ndarray] = {}
    first, shape = "", (0, 0, 0)
    for split, iterable in images.items():
        array: np.ndarray = np.empty((0, 0, 0, 1), np.uint8)
        for i, (image, title) in enumerate(zip(iterable, titles[split], strict=True)):
            if not first:
                first, shape = title, image.shape
            elif image.shape[:2] != shape[:2]:
                raise UserError(
                    f"Expected images of one size. Received: {first} of {shape[1]}x{shape[0]} "
                    f"and {title} of {image.shape[1]}x{image.shape[0]} pixels. Use --image-size "
                    "to resize them all"
                )
            if i == 0:
                array = np.empty((len(titles[split]), *image.shape), np.uint8)
            if image.shape[2] > array.shape[3]:
                array = np.repeat(array, image.shape[2], axis=3)
            array[i] = image
        arrays[split] = array
    channels = max(array.shape[3] for array in arrays.values())
    return {
        split: array if array.shape[3] == channels else np.repeat(array, channels, axis=3)
        for split, array in arrays.items()
    }


def _list_splits(
    root: Path, splits: Sequence[str], seed: int
) -> tuple[tuple[str, ...], dict[str, _Files]]:
    """Names of the classes, and the files of the splits asked for."""
    own = _own_splits(root)
    if own and "train" not in own and "train" in splits:
        raise UserError(
            f"Expected a folder train beside test, with a sub-folder per class. Received: "
            f"{str(root)!r} without it. Add it, or ask for the test split only"
        )
    names = _list_folders(own.get("train", own.get("test", root)))
    if len(names) < 2:
        raise UserError(
            "Expected a folder with a sub-folder of images for each of two or more classes. "
            f"Received: {str(root)!r} with {', '.join(names) or 'none'}. Sort the images into one "
            "folder per class"
        )
    if "test" in own and (extra := sorted(set(_list_folders(own["test"])) - set(names))):
        raise UserError(
            f"Expected the classes of {str(own['train'])!r}. Received: {str(own['test'])!r} with "
            f"{', '.join(extra)} besides. Rename or remove them"
        )

    files: dict[str, _Files] = {}
    if "test" in own:
        for split in splits:
            present = _list_folders(own[split])
            files[split] = _list_images(own[split], names, present)
    else:
        listed = _list_images(own.get("train", root), names, names)
        labels = np.array([label for _, label in listed])
        ranks = [_digest(f"{seed}/{file.parent.name}/{file.name}") for file, _ in listed]
        held = carve_mask(labels, TEST_FRACTION, seed, ranks)
        for split in splits:
            chosen = held if split == "test" else ~held
            files[split] = [entry for entry, use in zip(listed, chosen, strict=True) if use]
    return tuple(names), files


def _own_splits(root: Path) -> dict[str, Path]:
    """The folders of those splits that have classes of their own."""
    top = _list_folders(root)
    return {
        split: root / split
        for split in ("train", "test")
        if split in top and _list_folders(root / split)
    }


def _list_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.is_dir() and not entry.name.startswith((".", "__"))
            )
    except OSError as error:
        raise UserError(
            f"Expected a readable folder of images. Received: {str(folder)!r} ({error.strerror})"
        ) from error
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"Expected names of classes in UTF-8. Received: {name!r} in {str(folder)!r}; "
                "rename it"
            ) from error
    return names


def _list_images(folder: Path, names: Sequence[str], present: Sequence[str]) -> _Files:
    """The image files of the classes that are present; labels count all classes."""
    found: _Files = []
    for name in present:
        label = names.index(name)
        try:
            files = sorted(
                file
                for file in (folder / name).iterdir()
                if not file.name.startswith(".")
                and file.name.lower() != "thumbs.db"
                and file.suffix.lower() != ".csv"
            )
        except OSError as error:
            raise UserError(
                f"Expected a readable folder of images. Received: {str(folder / name)!r} "
                f"({error.strerror})"
            ) from error
        if not files:
            raise UserError(
                f"Expected an image in every class. Received: {str(folder / name)!r}, which is "
                "empty. Add images or remove it"
            )
        for file in files:
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                raise UserError(
                    f"Expected only images ({' '.join(sorted(SUFFIXES))}) in a class folder. "
                    f"Received: {str(file)!r}. Remove it or move it elsewhere"
                )
            found.append((file, label))
    return found
