"""The embedded data set: digits and letters drawn from the typefaces inside matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from stn.tool.config import UserError
from stn.tool.data import CHARACTERS, Dataset, Split

# Those of matplotlib's typefaces that hold all 62 characters as plain text. The others hold
# symbols (cmsy, cmex, STIXSiz*), or digits that sit below the line like letters (cmmi).
#
# The value is the least growth of the strokes, in fine pixels on each side: bold letters can be
# thinned, hairlines must be thickened or they fade at this size.
TYPEFACES = {
    "DejaVuSans": 0,
    "DejaVuSans-Oblique": 0,
    "DejaVuSans-Bold": -2,
    "DejaVuSans-BoldOblique": -2,
    "DejaVuSansMono": 0,
    "DejaVuSansMono-Oblique": 0,
    "DejaVuSansMono-Bold": -2,
    "DejaVuSansMono-BoldOblique": -2,
    "DejaVuSerif": 0,
    "DejaVuSerif-Italic": 0,
    "DejaVuSerif-Bold": -1,
    "DejaVuSerif-BoldItalic": -1,
    "STIXGeneral": 1,
    "STIXGeneralItalic": 1,
    "STIXGeneralBol": 0,
    "STIXGeneralBolIta": 0,
    "cmr10": 1,
    "cmss10": 0,
    "cmti10": 1,
    "cmtt10": 0,
    "cmb10": 0,
}
WEIGHTS = 4  # stroke weights of each typeface, each one fine pixel heavier than the one before

SIZE = 28  # height and width of an image
FINE = 4  # a character is first drawn this many times larger
CANVAS = 40 * FINE  # side of that drawing
CAPITAL = 16 * FINE  # height of a capital in it
BASELINE = CANVAS // 2 + round(0.4 * CAPITAL)  # leaves as much room below "p" as above "P"
WIDEST = 25  # pixels a character may take in an image; wider ones ("W") are condensed


def read(
    *,
    splits: Sequence[str],
    seed: int,
    train_per_class: int = 900,
    test_per_class: int = 100,
) -> Dataset:
    """Draw the data set. Images are upright, white on black, uint8 `(28, 28, 1)`.

    Every image has its own typeface, stroke weight, slant, proportions and place. The image
    number `k` of a class depends on the seed, the split, the class and `k` alone: not on how many
    are drawn or on which other split is. The same installation always draws the same images;
    another version of FreeType may round a pixel differently.

    Args:
        splits: Any of `"train"` and `"test"`.
        seed: Chooses all of the above.
        train_per_class: Number of training images of each of the 62 classes.
        test_per_class: Number of test images of each class.

    Returns:
        The data set; the classes take turns in the order of the images.
    """
    fonts = _load_fonts()
    counts = {"train": train_per_class, "test": test_per_class}
    images = {
        split: np.empty((counts[split], len(CHARACTERS), SIZE, SIZE, 1), np.uint8)
        for split in ("train", "test")
        if split in splits
    }
    for label, character in enumerate(CHARACTERS):
        drawings: dict[tuple[int, int], tuple[Image.Image, int]] = {}  # by typeface and growth
        for split, rows in images.items():
            stream = np.random.default_rng([seed, ("train", "test").index(split), label])
            draws = stream.random((counts[split], 7))
            faces = (draws[:, 0] * len(fonts)).astype(int)
            heavier = (draws[:, 1] * WEIGHTS).astype(int)
            for row, face, more, draw in zip(rows, faces, heavier, draws[:, 2:], strict=True):
                font, least = fonts[face]
                key = int(face), least + int(more)
                if key not in drawings:
                    drawings[key] = _draw(character, font, key[1])
                row[label, :, :, 0] = _place(*drawings[key], draw)

    labels = np.arange(len(CHARACTERS), dtype=np.int32)
    made = {
        split: Split(rows.reshape(-1, SIZE, SIZE, 1), np.tile(labels, counts[split]))
        for split, rows in images.items()
    }
    return Dataset("glyphs", tuple(CHARACTERS), made.get("train"), made.get("test"))


def _load_fonts() -> list[tuple[ImageFont.FreeTypeFont, int]]:
    """All typefaces, scaled so that their capitals have the same height, with least growths."""
    fonts = []
    for typeface, least in TYPEFACES.items():
        probe = open_typeface(typeface)
        top = probe.getbbox("H", anchor="ls")[1]
        fonts.append((probe.font_variant(size=200 * CAPITAL / -top), least))
    return fonts


def open_typeface(name: str) -> ImageFont.FreeTypeFont:
    """One of matplotlib's typefaces, at a size of 200."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    try:
        # The basic layout is always there; Raqm, where installed, could place differently.
        return ImageFont.truetype(str(file), 200, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(
            f"Expected the typefaces that come with matplotlib. Received: {file} ({error}). "
            "Install matplotlib again"
        ) from error


def _draw(character: str, font: ImageFont.FreeTypeFont, growth: int) -> tuple[Image.Image, int]:
    """Draw one character large, ready to be sampled; also give its width in fine pixels."""
    left, _, right, _ = font.getbbox(character, anchor="ls")
    image = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(image).text(
        (CANVAS / 2 - (left + right) / 2, BASELINE),
        character,
        fill=255,
        font=font,
        anchor="ls",
        stroke_width=max(growth, 0),
    )
    if growth < 0:
        image = image.filter(ImageFilter.MinFilter(1 - 2 * growth))
    # Averaging over the pixel to come is what makes the edges smooth when it is sampled.
    return image.filter(ImageFilter.BoxBlur((FINE - 1) / 2)), round(right - left) + 2 * growth


def _place(drawing: Image.Image, width: int, draw: np.ndarray) -> np.ndarray:
    """Sample a drawing into an image; `draw` holds five numbers from 0 to 1."""
    spread = 2 * draw - 1
    scale_x = min(1 + 0.18 * spread[0], WIDEST * FINE / width)
    scale_y = 1 + 0.1 * spread[1]
    slant = 0.25 * spread[2]
    center_x = SIZE / 2 + 1.2 * spread[3]
    center_y = SIZE / 2 + 1.2 * spread[4]
    # From a pixel of the image to a point of the drawing: x and y, each as a row of three.
    xx, yy = FINE / scale_x, FINE / scale_y
    xy = slant * xx
    pull = (
        *(xx, xy, CANVAS / 2 - xx * center_x - xy * center_y),
        *(0.0, yy, CANVAS / 2 - yy * center_y),
    )
    image = drawing.transform((SIZE, SIZE), Image.Transform.AFFINE, pull, Image.Resampling.BILINEAR)
    return np.asarray(image)
