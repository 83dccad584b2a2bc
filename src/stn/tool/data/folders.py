"""Images in folders, one per class; and the one function that decodes an image file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from stn.tool.config import UserError
from stn.tool.data import TEST_FRACTION, Dataset, Split, carve_mask

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb
CHANNELS = {"auto": None, "grey": 1, "rgb": 3}  # by color

_Files = list[tuple[Path, int]]  # each with its label


def read_image(
    path_or_file: str | os.PathLike[str] | BinaryIO,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> np.ndarray:
    """Decode an image file: PNG, JPEG, BMP, GIF (first frame), WebP, TIFF, PPM or PGM.

    Transparent parts become black, the orientation a camera noted is applied, and 16-bit grey is
    scaled to 8 bits.

    Args:
        path_or_file: A path, or a file opened for reading bytes.
        size: `(height, width)` in pixels to resize to, smoothly; None keeps that of the file.
        channels: 1 for grey or 3 for RGB; None gives 3 if any pixel has a color, else 1.

    Returns:
        uint8 array `(height, width, channels)`, values 0 to 255.

    Raises:
        UserError: If the file is missing, is not an image, is damaged, or is larger than
            89 million pixels.

    Example:
        >>> read_image("letter.png", size=(28, 28), channels=1).shape  # doctest: +SKIP
        (28, 28, 1)
    """
    if channels not in (None, 1, 3):
        raise UserError(f"Expected channels 1, 3 or None. Received: channels={channels!r}")
    title = _title(path_or_file)
    try:
        with Image.open(path_or_file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
            pixels = _flatten(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"Expected an image of at most {MAX_PIXELS} pixels. Received: {title} ({error}). "
            "Make it smaller"
        ) from error
    except UserError as error:
        raise UserError(f"{error} in {title}. Convert it to 8 bits per channel") from error
    except FileNotFoundError as error:
        raise UserError(f"Expected an image file. Received: {title}, which is missing") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        raise UserError(
            f"Expected an image ({', '.join(FORMATS)}). Received: {title}, which cannot be read "
            f"as one ({error}). Replace or remove it"
        ) from error

    array = np.asarray(pixels)
    return convert(array.reshape(*array.shape[:2], -1), size=size, channels=channels)


def convert(
    image: np.ndarray, *, size: tuple[int, int] | None = None, channels: int | None = None
) -> np.ndarray:
    """Bring an image to a size and a number of channels.

    Args:
        image: uint8 array `(height, width, channels)` with 1 or 3 channels.
        size: As in `read_image`.
        channels: As in `read_image`.

    Returns:
        uint8 array `(height, width, channels)`.
    """
    if image.shape[2] == 3 and (channels == 1 or (channels is None and not _has_color(image))):
        image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    if size is not None and image.shape[:2] != tuple(size):
        image = resize(image, size)
    return np.repeat(image, 3, axis=2) if channels == 3 and image.shape[2] == 1 else image


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize without aliasing; the aspect ratio is not kept.

    Args:
        image: uint8 array `(height, width, channels)` with 1 or 3 channels.
        size: The new `(height, width)` in pixels.

    Returns:
        uint8 array `(*size, channels)`.
    """
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized.reshape(*size, image.shape[2])


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
    of every class, chosen by the seed. Hidden files are skipped.

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
    root = Path(path).expanduser()
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
    top = _list_folders(root)
    own = {
        split: root / split
        for split in ("train", "test")
        if split in top and _list_folders(root / split)
    }
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
        held = carve_mask(np.array([label for _, label in listed]), TEST_FRACTION, seed)
        for split in splits:
            chosen = held if split == "test" else ~held
            files[split] = [entry for entry, use in zip(listed, chosen, strict=True) if use]
    return tuple(names), files


def _list_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir() and not entry.name.startswith((".", "__"))
            )
    except OSError as error:
        raise UserError(
            f"Expected a readable folder of images. Received: {str(folder)!r} ({error.strerror})"
        ) from error


def _list_images(folder: Path, names: Sequence[str], present: Sequence[str]) -> _Files:
    """The image files of the classes that are present; labels count all classes."""
    found: _Files = []
    for name in present:
        label = names.index(name)
        try:
            files = sorted(
                file
                for file in (folder / name).iterdir()
                if not file.name.startswith(".") and file.name.lower() != "thumbs.db"
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


def _flatten(image: Image.Image) -> Image.Image:
    """Bring any mode of Pillow to 8-bit grey ("L") or RGB, on black where transparent."""
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(
                "Expected grey values of at most 16 bits. Received: "
                f"{values.min()} to {values.max()}"
            )
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise UserError("Expected whole numbers as pixels. Received: floating-point numbers")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        black = Image.new("RGBA", solid.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, solid).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _has_color(pixels: np.ndarray) -> bool:
    red = pixels[:, :, :1]
    return bool((pixels[:, :, 1:] != red).any())


def _title(path_or_file: str | os.PathLike[str] | BinaryIO) -> str:
    if isinstance(path_or_file, str | os.PathLike):
        return repr(os.fspath(path_or_file))
    name = getattr(path_or_file, "name", None)
    return "the image that was sent" if name is None else repr(name)
