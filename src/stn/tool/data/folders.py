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

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_NO_CLASS = (".", "__", "@")  # hidden folders, and those that archives and servers leave


def read(
    path: str | os.PathLike[str],
    *,
    splits: Sequence[str],
    image_size: int | None,
    color: str,
    seed: int,
) -> Dataset:
    """Read a folder that has one sub-folder of images per class.

    If it has `train` or `test` (or `training` or `testing`, in any case) with such sub-folders in
    them, these are the splits; other folders beside them are not read. A split `test` that is
    missing is drawn from the training images: 20 % of every class, chosen by the seed and the names
    of the files, so that one file more or less hardly moves another. Hidden files are skipped, and
    tables (`.csv`), which some data sets keep beside the images of a class.

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
    top = own.get("train", own.get("test", root))
    names = _list_folders(top)
    if len(names) < 2:
        below = [top / name for name in names if _list_folders(top / name)]
        hint = f"; if they are so in it, give folder:{below[0]}" if below else ""
        raise UserError(
            "Expected a folder with a sub-folder of images for each of two or more classes. "
            f"Received: {str(root)!r} with {', '.join(names) or 'none'}. Sort the images into one "
            f"folder per class{hint}"
        )
    if "test" in own and (extra := sorted(set(_list_folders(own["test"])) - set(names))):
        raise UserError(
            f"Expected the classes of {str(own['train'])!r}. Received: {str(own['test'])!r} with "
            f"{', '.join(extra)} besides. Rename or remove them"
        )

    files: dict[str, _Files] = {}
    if "test" in own:
        for split in splits:
            # A class that is trained on may be missing among the test images.
            may_lack = split == "test" and "train" in own
            files[split] = _list_images(own[split], names, may_lack=may_lack)
    else:
        listed = _list_images(top, names)
        labels = np.array([label for _, label in listed])
        ranks = [_digest(f"{seed}/{file.parent.name}/{file.name}") for file, _ in listed]
        held = carve_mask(labels, TEST_FRACTION, seed, ranks)
        for split in splits:
            chosen = held if split == "test" else ~held
            files[split] = [entry for entry, use in zip(listed, chosen, strict=True) if use]
    return tuple(names), files


def _own_splits(root: Path) -> dict[str, Path]:
    """The folders of those splits that have classes of their own."""
    named: dict[str, Path] = {}
    for name in _list_folders(root):
        split = _SPLITS.get(name.lower())
        if split is None:
            continue
        if split in named:
            raise UserError(
                f"Expected one folder of {split} images. Received: {str(named[split])!r} and "
                f"{str(root / name)!r}; rename one of them"
            )
        named[split] = root / name
    own = {split: folder for split, folder in named.items() if _list_folders(folder)}
    if "train" in own and (lacking := set(named) - set(own)):
        (split,) = lacking
        raise UserError(
            f"Expected a sub-folder of images for each class in {str(named[split])!r}. Received: "
            f"none. Sort its images into such, or move it elsewhere: then {TEST_FRACTION:.0%} of "
            f"the images in {str(own['train'])!r} become the test images"
        )
    return own


def _list_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.is_dir() and not entry.name.startswith(_NO_CLASS)
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
        if "\t" in name or len(name.splitlines()) > 1:
            raise UserError(
                f"Expected names of classes on one line. Received: {name!r} in {str(folder)!r}; "
                "rename it"
            )
    return names


def _list_images(folder: Path, names: Sequence[str], *, may_lack: bool = False) -> _Files:
    """The image files of each class; of a class that may lack, perhaps none."""
    found: _Files = []
    strange: list[Path] = []
    present = set(_list_folders(folder))
    for label, name in enumerate(names):
        if name not in present:
            continue
        try:
            files = sorted(file for file in (folder / name).iterdir() if not _passed_over(file))
        except OSError as error:
            raise UserError(
                f"Expected a readable folder of images. Received: {str(folder / name)!r} "
                f"({error.strerror})"
            ) from error
        if not files and not may_lack:
            raise UserError(
                f"Expected an image in every class. Received: {str(folder / name)!r}, which is "
                "empty but for tables and hidden files, if any. Add images or remove it"
            )
        strange += [
            file for file in files if file.suffix.lower() not in SUFFIXES or not file.is_file()
        ]
        found += [(file, label) for file in files]
    if strange:
        raise UserError(
            f"Expected only images ({' '.join(sorted(SUFFIXES))}) in a class folder. "
            f"Received: {_some(strange)}. {_advice(strange)}"
        )
    return found


def _passed_over(file: Path) -> bool:
    """Whether something beside images belongs to a system or a data set, and to no class."""
    name = file.name.lower()
    if name.startswith(".") or name in ("thumbs.db", "desktop.ini") or name.endswith(".csv"):
        return True
    return name.startswith(_NO_CLASS) and file.is_dir()


def _some(files: Sequence[Path]) -> str:
    def describe(file: Path) -> str:
        if file.is_dir():
            return f"{str(file)!r} (a folder)"
        return f"{str(file)!r}{'' if file.exists() else ' (a link to nothing)'}"

    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return ", ".join(map(describe, files[:5])) + more


def _advice(strange: Sequence[Path]) -> str:
    them = "it" if len(strange) == 1 else "them"
    advice = f"Remove {them} or move {them} elsewhere"
    folders = [file for file in strange if file.is_dir()]
    if not folders:
        return advice
    return f"If those are the classes, give folder:{folders[0].parent}. Otherwise {advice.lower()}"
