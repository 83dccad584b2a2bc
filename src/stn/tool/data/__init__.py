"""Image data sets: one way to load every source, and the table of the sources there are."""

from __future__ import annotations

import difflib
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stn.tool.config import UserError

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""The 62 classes of EMNIST ByClass and of the glyphs, in the order of their labels."""

MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
"""The 47 classes of EMNIST ByMerge and Balanced: the other letters look alike in both cases."""

CHANNELS = {"auto": None, "grey": 1, "rgb": 3}
"""By color; None: as the images have it."""

TEST_FRACTION = 0.2
"""Share of the images that becomes the test split of a source that has none of its own."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 array `(count, height, width, channels)`, values 0 to 255.
        labels: int32 array `(count,)`, indices into the class names.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Any) -> Split:
        """Pick images by position: integers, a boolean mask, or a slice."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set; a split that was not asked for is None.

    Attributes:
        name: The name it was loaded by.
        class_names: One name per label, in order.
        train: The training images.
        test: The test images.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split | None
    test: Split | None


@dataclass(frozen=True)
class Source:
    """A line of the table of sources; None where a value depends on the user's own data.

    Attributes:
        name: What to give to `load`.
        title: One line about what it holds.
        classes: Number of classes.
        image_shape: `(height, width, channels)`.
        train: Number of training images.
        test: Number of test images.
        default_distortion: The distortion that makes it a task for a spatial transformer.
        origin: Where it comes from.
    """

    name: str
    title: str
    classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    train: int | None = None
    test: int | None = None
    default_distortion: str = "none"
    origin: str = ""


_GREY = (28, 28, 1)
# Of `data_dir` and `mirror`, what a source has a use for; all others have for both.
_READS = {"glyphs": (), "signs": (), "folder:PATH": (), "tfds:NAME": ("data_dir",)}
_NIST = "NIST, biometrics.nist.gov (Cohen et al. 2017, arXiv 1702.05373)"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "glyphs",
            "printed digits and letters, drawn on the fly; needs no files and no network",
            classes=62,
            image_shape=_GREY,
            train=55_800,
            test=6_200,
            default_distortion="RTS",
            origin="the typefaces that come with matplotlib",
        ),
        Source(
            "signs",
            "traffic signs in perspective, drawn on the fly; needs no files and no network",
            classes=39,
            image_shape=(48, 48, 3),
            train=9_750,
            test=2_925,
            origin="drawn by this project",
        ),
        Source(
            "mnist",
            "handwritten digits",
            classes=10,
            image_shape=_GREY,
            train=60_000,
            test=10_000,
            origin="LeCun et al., storage.googleapis.com/cvdf-datasets",
        ),
        *(
            Source(f"emnist/{part}", title, classes, _GREY, train, test, origin=_NIST)
            for part, title, classes, train, test in (
                ("byclass", "handwritten digits and letters", 62, 697_932, 116_323),
                ("bymerge", "the same, letters alike in both cases merged", 47, 697_932, 116_323),
                ("balanced", "equally many of each of the merged classes", 47, 112_800, 18_800),
                ("letters", "handwritten letters, both cases as one", 26, 124_800, 20_800),
                ("digits", "handwritten digits, equally many of each", 10, 240_000, 40_000),
                ("mnist", "as many handwritten digits as MNIST has", 10, 60_000, 10_000),
            )
        ),
        Source("folder:PATH", "your own images, one sub-folder per class", origin="PATH"),
        Source(
            "tfds:NAME",
            'an image classification set of TensorFlow Datasets; needs pip install -e ".[tfds]"',
            origin="tensorflow.org/datasets",
        ),
    )
}
"""Every source, by the name that `load` takes; PATH and NAME stand for the user's own."""


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    splits: Sequence[str] = ("train", "test"),
    image_size: int | None = None,
    color: Literal["auto", "grey", "rgb"] = "auto",
    mirror: str | None = None,
    seed: int = 42,
) -> Dataset:
    """Load a data set; only the splits asked for are read.

    Args:
        name: A key of `SOURCES`, or `folder:` and a path, or `tfds:` and a name.
        data_dir: Folder with the official files of `mnist` or `emnist/...`, or that of TensorFlow
            Datasets. None downloads them into the cache folder, which the environment variable
            `STN_CACHE` overrides. Other sources take none.
        splits: Any of `"train"` and `"test"`.
        image_size: Height and width in pixels to resize every image to; the aspect ratio is not
            kept. None keeps the size the images have.
        color: `"grey"` gives 1 channel, `"rgb"` 3; `"auto"` gives 3 if any image of the splits
            that are read is in color, else 1.
        mirror: Base URL to download from instead of the official place; the name of the file is
            appended. The environment variable `STN_MIRROR` does the same.
        seed: Draws the glyphs and the signs, and the test images of a source without a test split.

    Returns:
        The data set; `images` are uint8 `(count, height, width, channels)`, `labels` int32.

    Raises:
        UserError: If the name is unknown or the data is missing, damaged or unsuitable.

    Example:
        >>> load("glyphs", splits=("test",)).test.images.shape
        (6200, 28, 28, 1)
    """
    source = _source(name)
    wanted = tuple(splits)
    if not wanted or set(wanted) - {"train", "test"}:
        raise UserError(f"Expected splits of 'train' and 'test'. Received: splits={splits!r}")
    if color not in ("auto", "grey", "rgb"):
        raise UserError(f"Expected color 'auto', 'grey' or 'rgb'. Received: color={color!r}")
    if image_size is not None and not (isinstance(image_size, int) and 1 <= image_size <= 4096):
        raise UserError(f"Expected 1 to 4096 pixels. Received: image_size={image_size!r}")
    given = {"data_dir": data_dir, "mirror": mirror}
    useless = [
        key
        for key, value in given.items()
        if value is not None and key not in _READS.get(source.name, given)
    ]
    if useless:
        raise UserError(
            f"Expected no {' and no '.join(useless)} with {name!r}, which has no use for it. "
            "Received: "
            + ", ".join(f"{key}={given[key]!r}" for key in useless)
            + "; leave it out, or choose other --data, such as mnist or emnist/byclass"
        )

    # The sources are imported here, so that listing them costs nothing.
    if source.name == "folder:PATH":
        from stn.tool.data import folders

        path = name.removeprefix("folder:")
        return folders.read(path, splits=wanted, image_size=image_size, color=color, seed=seed)
    if source.name == "tfds:NAME":
        from stn.tool.data import tfds

        return tfds.read(
            name.removeprefix("tfds:"),
            data_dir=data_dir,
            splits=wanted,
            image_size=image_size,
            color=color,
            seed=seed,
        )
    if source.name == "glyphs":
        from stn.tool.data import glyphs

        dataset = glyphs.read(splits=wanted, seed=seed)
    elif source.name == "signs":
        from stn.tool.data import signs

        dataset = signs.read(splits=wanted, seed=seed)
    else:
        from stn.tool.data import idx

        dataset = idx.read(name, data_dir=data_dir, splits=wanted, mirror=mirror)
    return _conform(dataset, image_size, color)


def training_files(name: str, seed: int) -> str | None:
    """A checksum of the names of the training images, where the test images are drawn among them.

    Args:
        name: As for `load`.
        seed: Likewise.

    Returns:
        The checksum for a `folder:` without test images of its own; None for all others.

    Raises:
        UserError: If the folder has another structure.

    Example:
        >>> training_files("mnist", seed=42) is None
        True
    """
    if _source(name).name != "folder:PATH":
        return None
    from stn.tool.data import folders

    return folders.training_files(name.removeprefix("folder:"), seed)


def carve(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a validation split in which every class has its share.

    The same arguments always give the same images. Both parts keep the order of the images. A
    class never loses its last image, so that all classes can be learned.

    Args:
        split: The images to divide.
        fraction: Share to split off, at least 0 and less than 1; rounded to whole images, and to
            at least one image if more than 0.
        seed: Chooses the images.

    Returns:
        `(train, validation)`.

    Raises:
        UserError: If the fraction is out of range, or no class has an image to spare.

    Example:
        >>> digits = Split(np.zeros((10, 2, 2, 1), "uint8"), np.repeat([0, 1], 5).astype("int32"))
        >>> [part.labels.tolist() for part in carve(digits, 0.2, seed=1)]
        [[0, 0, 0, 0, 1, 1, 1, 1], [0, 1]]
    """
    chosen = carve_mask(split.labels, fraction, seed)
    return split.take(~chosen), split.take(chosen)


def carve_mask(
    labels: np.ndarray, fraction: float, seed: int, ranks: Sequence[Any] | None = None
) -> np.ndarray:
    """Choose what `carve` splits off.

    Args:
        labels: int array `(count,)`.
        fraction: As in `carve`.
        seed: As in `carve`.
        ranks: Of every image what decides within its class, the smallest first; by default chance.

    Returns:
        bool array `(count,)`, true for the images to split off.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"Expected a fraction 0 <= f < 1 to split off. Received: {fraction!r}")
    chosen = np.zeros(len(labels), bool)
    if fraction == 0:
        return chosen
    generator = np.random.default_rng(seed)
    # Shuffle within each class, then keep the first of each for training.
    order = generator.permutation(len(labels)) if ranks is None else np.argsort(ranks)
    order = order[np.argsort(labels[order], kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    spare = counts - 1
    total = min(max(1, round(len(labels) * fraction)), int(spare.sum()))
    if total == 0:
        raise UserError(
            f"Expected a class of two or more images, to split off a share of {fraction}. "
            f"Received: {len(labels)} images of {len(counts)} classes. Add images"
        )
    # Whole images first, then one more for the classes with the largest remainder.
    shares = np.minimum((counts * fraction).astype(int), spare)
    remainders = counts * fraction - shares
    while (missing := total - int(shares.sum())) > 0:
        ranked = np.lexsort((generator.random(len(counts)), -remainders, shares >= spare))
        grown = [i for i in ranked[:missing] if shares[i] < spare[i]]
        shares[grown] += 1
        remainders[grown] -= 1
    starts = np.cumsum(counts) - counts
    for start, share in zip(starts, shares, strict=True):
        chosen[order[start : start + share]] = True
    return chosen


def default_distortion(name: str) -> str:
    """The distortion a source is trained with unless the user says otherwise.

    Raises:
        UserError: If the name is unknown.

    Example:
        >>> default_distortion("glyphs"), default_distortion("folder:my/images")
        ('RTS', 'none')
    """
    return _source(name).default_distortion


def default_augmentation(distortion: str) -> float:
    """The strength of augmentation beside a distortion unless the user says otherwise.

    Example:
        >>> default_augmentation("none"), default_augmentation("RTS")
        (0.5, 0.0)
    """
    return 0.5 if distortion == "none" else 0.0


def _source(name: str) -> Source:
    for key in ("folder:PATH", "tfds:NAME"):
        prefix, argument = key.split(":")
        if name == prefix or name == f"{prefix}:":
            raise UserError(
                f"Expected {key}. Received: {name!r}. Append the {argument.lower()} to {prefix}:"
            )
        if name.startswith(f"{prefix}:"):
            return SOURCES[key]
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name.lower(), SOURCES, n=1, cutoff=0.5)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"Expected one of {', '.join(SOURCES)}. Received: {name!r}{hint}")


def _conform(dataset: Dataset, image_size: int | None, color: str) -> Dataset:
    """Bring the images of a built-in source to another size or number of channels."""

    def bring(split: Split | None) -> Split | None:
        if split is None:
            return None
        height, width, channels = split.images.shape[1:]
        size = image_size or height, image_size or width
        wanted = CHANNELS[color] or channels
        if (*size, wanted) == (height, width, channels):
            return split
        from stn.tool.images import convert

        images = np.empty((len(split), *size, wanted), np.uint8)
        for i, image in enumerate(split.images):
            images[i] = convert(image, size=size, channels=wanted)
        return Split(images, split.labels)

    return Dataset(dataset.name, dataset.class_names, bring(dataset.train), bring(dataset.test))
