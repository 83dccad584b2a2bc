"""Traffic signs, drawn and then seen in perspective: a task for `projective` without any files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from stn.tool.data import Dataset, Split, glyphs

SIZE = 48  # height and width of an image
PLATE = 96  # of the drawing a sign is sampled from; about 2 of its pixels make one of the image
FINE = 4  # it is first drawn this many times larger

RED, BLUE, YELLOW = (187, 22, 34), (14, 76, 158), (247, 196, 12)
WHITE, GREY, BLACK = (243, 243, 240), (120, 122, 124), (24, 24, 26)

# What is behind signs: skies, clouds, leaves, stone, brick, roads, and dark corners.
SCENERY = np.array(
    [
        *((140, 178, 222), (92, 140, 200), (206, 214, 222), (232, 232, 230)),
        *((62, 92, 44), (104, 128, 62), (44, 58, 38), (150, 140, 104)),
        *((128, 116, 104), (152, 98, 78), (92, 90, 90), (52, 52, 56), (28, 28, 30)),
    ],
    "float32",
)

# A sign fills the square from -1 to 1, y downward. Its outline is a disk or a polygon.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": [(0.97 * math.cos(a), 0.97 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 73)],
    "octagon": [(math.cos(a) / 0.96, math.sin(a) / 0.96) for a in np.pi / 8 * np.arange(1, 17, 2)],
    "triangle": [(0, -0.92), (0.98, 0.8), (-0.98, 0.8)],
    "yield": [(0, 0.92), (0.98, -0.8), (-0.98, -0.8)],
    "diamond": [(0, -0.98), (0.98, 0), (0, 0.98), (-0.98, 0)],
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
}

# Outline, color of its border, how far it is from the center (1: no border), color inside.
WARNING = ("triangle", RED, 0.72, WHITE)
FORBIDDEN = ("circle", RED, 0.76, WHITE)
NO_HALT = ("circle", RED, 0.8, BLUE)
COMMAND = ("circle", WHITE, 0.94, BLUE)
NOTICE = ("square", WHITE, 0.93, BLUE)

# What is on it: lines (color, width, points), of which one without width is an area and one of a
# single point a disk, and words (color, height, word).
Mark = tuple[tuple[int, int, int], float, str | list[tuple[float, float]]]


def _mirror(marks: list[Mark]) -> list[Mark]:
    return [
        (color, width, what if isinstance(what, str) else [(-x, y) for x, y in what])
        for color, width, what in marks
    ]


def _arrow(color: tuple[int, int, int], *path: tuple[float, float], width: float = 0.2) -> list:
    """A line along a path with a head at its end."""
    (x0, y0), (x1, y1) = path[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    reach = 1.5 * width
    head = [
        (x1 + reach * dx, y1 + reach * dy),
        (x1 - reach * dy, y1 + reach * dx),
        (x1 + reach * dy, y1 - reach * dx),
    ]
    return [(color, width, list(path)), (color, 0, head)]


def _car(color: tuple[int, int, int], x: float) -> list[Mark]:
    return [
        (color, 0, [(x - 0.25, -0.02), (x + 0.25, -0.02), (x + 0.25, 0.24), (x - 0.25, 0.24)]),
        (color, 0, [(x - 0.17, -0.22), (x + 0.17, -0.22), (x + 0.22, 0), (x - 0.22, 0)]),
        *((color, 0.13, [(x + side, 0.26)]) for side in (-0.16, 0.16)),
    ]


def _arc(
    start: float, end: float, radius: float, center: tuple[float, float] = (0.0, 0.0)
) -> list[tuple[float, float]]:
    x, y = center
    angles = np.deg2rad(np.linspace(start, end, 9))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


_BEND = _arrow(BLACK, (0.14, 0.62), (0.14, 0.22), (-0.12, 0.02), width=0.15)
_TURN = _arrow(WHITE, (0.3, 0.5), (0.3, -0.1), (-0.32, -0.1))
_SIDE = _arrow(WHITE, (0.12, 0.6), (0.12, -0.38)) + _arrow(WHITE, (0.12, 0.14), (-0.4, 0.14))
_KEEP = _arrow(WHITE, (-0.34, -0.34), (0.26, 0.26), width=0.24)
_NO_TURN = [
    *_arrow(BLACK, (0.22, 0.42), (0.22, -0.12), (-0.2, -0.12), width=0.15),
    (RED, 0.15, [(-0.52, -0.52), (0.52, 0.52)]),
]

SIGNS: dict[str, tuple[tuple[str, tuple[int, int, int], float, tuple[int, int, int]], list]] = {
    "danger": (WARNING, [(BLACK, 0.2, [(0, -0.16), (0, 0.22)]), (BLACK, 0.22, [(0, 0.52)])]),
    "bend-left": (WARNING, _BEND),
    "bend-right": (WARNING, _mirror(_BEND)),
    "winding": (
        WARNING,
        _arrow(BLACK, (0.16, 0.62), (0.16, 0.42), (-0.14, 0.2), (-0.02, -0.06), width=0.13),
    ),
    "bumps": (
        WARNING,
        [(BLACK, 0.12, [(-0.46, 0.56), (0.46, 0.56)])]
        + [(BLACK, 0, _arc(180, 360, 0.2, (x, 0.54))) for x in (-0.22, 0.22)],
    ),
    "crossroads": (
        WARNING,
        [(BLACK, 0.16, [(0, -0.16), (0, 0.6)]), (BLACK, 0.16, [(-0.34, 0.28), (0.34, 0.28)])],
    ),
    "narrows": (
        WARNING,
        [
            (BLACK, 0.13, [(side * 0.32, 0.6), (side * 0.3, 0.34), (side * 0.11, 0.1)])
            for side in (-1, 1)
        ]
        + [(BLACK, 0.13, [(side * 0.11, 0.1), (side * 0.11, -0.14)]) for side in (-1, 1)],
    ),
    "signals": (
        WARNING,
        [
            (color, 0.26, [(0, y)])
            for color, y in ((RED, -0.1), (YELLOW, 0.2), ((20, 130, 70), 0.5))
        ],
    ),
    "pedestrians": (
        WARNING,
        [
            (BLACK, 0.2, [(0.02, -0.14)]),
            (BLACK, 0.18, [(0, 0.04), (-0.02, 0.28)]),
            (BLACK, 0.1, [(-0.26, 0.26), (0, 0.04), (0.22, 0.22)]),
            (BLACK, 0.11, [(-0.24, 0.62), (-0.02, 0.3), (0.2, 0.62)]),
        ],
    ),
    "yield": (("yield", RED, 0.66, WHITE), []),
    "stop": (("octagon", WHITE, 0.93, RED), [(WHITE, 0.62, "STOP")]),
    "priority": (("diamond", WHITE, 0.8, YELLOW), []),
    "end-of-priority": (
        ("diamond", WHITE, 0.8, YELLOW),
        [(BLACK, 0.06, [(-0.34 + d, 0.34 + d), (0.34 + d, -0.34 + d)]) for d in (-0.1, 0, 0.1)],
    ),
    **{
        f"limit-{limit}": (FORBIDDEN, [(BLACK, 0.8, str(limit))])
        for limit in (20, 30, 50, 60, 70, 80, 100)
    },
    "closed": (FORBIDDEN, []),
    "no-entry": (("circle", RED, 1, RED), [(WHITE, 0.34, [(-0.5, 0), (0.5, 0)])]),
    "no-overtaking": (FORBIDDEN, _car(RED, -0.31) + _car(BLACK, 0.31)),
    "no-left-turn": (FORBIDDEN, _NO_TURN),
    "no-right-turn": (FORBIDDEN, _mirror(_NO_TURN)),
    "no-parking": (NO_HALT, [(RED, 0.18, [(-0.55, -0.55), (0.55, 0.55)])]),
    "no-stopping": (
        NO_HALT,
        [(RED, 0.18, [(-0.55 * side, -0.55), (0.55 * side, 0.55)]) for side in (-1, 1)],
    ),
    "end-of-limits": (
        ("circle", BLACK, 0.95, WHITE),
        [
            (GREY, 0.08, [(-0.5 + d, 0.5 + d), (0.5 + d, -0.5 + d)])
            for d in (-0.18, -0.06, 0.06, 0.18)
        ],
    ),
    "ahead": (COMMAND, _arrow(WHITE, (0, 0.6), (0, -0.34), width=0.22)),
    "left": (COMMAND, _TURN),
    "right": (COMMAND, _mirror(_TURN)),
    "ahead-or-left": (COMMAND, _SIDE),
    "ahead-or-right": (COMMAND, _mirror(_SIDE)),
    "keep-right": (COMMAND, _KEEP),
    "keep-left": (COMMAND, _mirror(_KEEP)),
    "roundabout": (
        COMMAND,
        [
            mark
            for start in (-80, 40, 160)
            for mark in _arrow(WHITE, *_arc(start, start + 70, 0.48), width=0.15)
        ],
    ),
    "parking": (NOTICE, [(WHITE, 1.3, "P")]),
    "dead-end": (
        NOTICE,
        [(WHITE, 0.24, [(0, 0.66), (0, -0.2)]), (RED, 0.26, [(-0.42, -0.36), (0.42, -0.36)])],
    ),
    "crossing": (
        NOTICE,
        [
            (WHITE, 0, [(0, -0.72), (0.74, 0.64), (-0.74, 0.64)]),
            (BLACK, 0.16, [(0.02, -0.3)]),
            (BLACK, 0.13, [(0, -0.14), (-0.02, 0.12)]),
            (BLACK, 0.08, [(-0.2, 0.08), (0, -0.14), (0.2, 0.06)]),
            (BLACK, 0.09, [(-0.22, 0.48), (-0.02, 0.14), (0.18, 0.48)]),
        ],
    ),
}
"""Every class: its plate, and the marks on it, the last one on top."""


def read(
    *,
    splits: Sequence[str],
    seed: int,
    train_per_class: int = 250,
    test_per_class: int = 75,
) -> Dataset:
    """Draw the data set: photographs, so to speak, uint8 `(48, 48, 3)`.

    Every sign hangs before another scene, is turned out of the plane of the image by up to 60
    degrees and seen from near by, and lies somewhere in the image; then come weather, shadow, blur
    and noise. The image number `k` of a class depends on the seed, the split, the class and `k`
    alone: not on how many are drawn or on which other split is. The same installation always draws
    the same images; another version of Pillow may round a pixel differently.

    Args:
        splits: Any of `"train"` and `"test"`.
        seed: Chooses all of the above.
        train_per_class: Number of training images of each of the 39 classes.
        test_per_class: Number of test images of each class.

    Returns:
        The data set; the classes take turns in the order of the images.
    """
    names = tuple(sorted(SIGNS))
    plates = [_draw_sign(*SIGNS[name]) for name in names]
    made = {}
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        if split in splits:
            images = np.empty((count, len(names), SIZE, SIZE, 3), np.uint8)
            for k, label in np.ndindex(count, len(names)):
                rng = np.random.default_rng([seed, ("train", "test").index(split), label, k])
                images[k, label] = _photograph(plates[label], rng)
            labels = np.tile(np.arange(len(names), dtype=np.int32), count)
            made[split] = Split(images.reshape(-1, SIZE, SIZE, 3), labels)
    return Dataset("signs", names, made.get("train"), made.get("test"))


def _draw_sign(plate: tuple[str, tuple, float, tuple], marks: list[Mark]) -> Image.Image:
    """Draw a sign as it hangs there, RGBA, ready to be sampled."""
    outline, border, inner, fill = plate
    side = PLATE * FINE
    middle = np.array([0, 0.22 if outline == "triangle" else -0.22 if outline == "yield" else 0])

    def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        # A frame of nothing around, lest the edge be cut where it is sampled.
        return [tuple(side / 2 * (1 + 0.96 * np.array(point))) for point in points]

    corners = OUTLINES[outline]
    image = Image.new("RGB", (side, side), border)
    draw = ImageDraw.Draw(image)
    draw.polygon(place([tuple(middle + inner * (p - middle)) for p in np.array(corners)]), fill)
    for color, width, what in marks:
        if isinstance(what, str):
            font = _font(what, width * side / 2, 1.24 * side / 2)
            draw.text((side / 2, side / 2), what, color, font, anchor="mm")
            continue
        points = place(what)
        if not width:
            draw.polygon(points, color)
            continue
        thick = width * side / 2
        draw.line(points, color, round(thick), joint="curve")
        for x, y in points if len(points) == 1 else ():
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), color)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(place(corners), 255)
    image.putalpha(mask)
    # The colors go on beyond the edge, so that what is blended there is not black.
    return image.reduce(FINE)


def _font(word: str, height: float, widest: float) -> ImageFont.FreeTypeFont:
    """Bold type in which a word has this height, or less if it would be too wide."""
    probe = glyphs.open_typeface("DejaVuSans-Bold")
    left, top, right, bottom = probe.getbbox(word)
    return probe.font_variant(size=200 * min(height / (bottom - top), widest / (right - left)))


def _photograph(plate: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A picture of a sign in a scene."""
    pull, foot = _view(rng)
    scene = _scene(rng)
    if rng.random() < 0.7:  # its post
        x, y = foot
        ImageDraw.Draw(scene).line((x, y, x, SIZE), (110, 112, 114), round(rng.uniform(1, 4)))
    view = plate.transform(
        (SIZE, SIZE), Image.Transform.PERSPECTIVE, pull, Image.Resampling.BILINEAR
    )
    scene.paste(view, (0, 0), view)
    scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    image: np.ndarray = np.asarray(scene, np.float32)

    # Shadow, haze, and the color and strength of the light.
    shadow = 1 - rng.uniform(0, 0.7) * (rng.random() < 0.4) * _slope(rng, rng.uniform(0.1, 2))
    haze = 0.5 * rng.random() ** 3
    light = (np.exp(rng.uniform(-1.2, 0.3)) * rng.normal(1, 0.06, 3)).astype("float32")
    image = ((1 - haze) * image * shadow[..., None] + 210 * haze) * light
    image += rng.uniform(1, 10) * rng.standard_normal(image.shape, "float32")
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _view(rng: np.random.Generator) -> tuple[tuple[float, ...], np.ndarray]:
    """How a camera sees a sign: from a pixel to a point of its drawing; and where its foot is."""
    yaw, pitch, roll = rng.uniform(-1, 1, 3) * np.deg2rad([60, 40, 12])
    about_y = np.array([[np.cos(yaw), 0], [0, 1], [-np.sin(yaw), 0]])
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    about_z = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    # The plate is 2 wide and its center, at this distance, in the middle of what the camera sees.
    push = np.column_stack([about_x @ about_y @ about_z, [0, 0, rng.uniform(2.2, 5)]])
    corners = push @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    corners = corners[:2] / corners[2]
    extent = np.ptp(corners, axis=1)
    scale = SIZE * rng.uniform(0.6, 1.0) / extent.max()
    room = SIZE - scale * extent
    offset = rng.uniform(0, 1, 2) * room - scale * corners.min(axis=1)
    push = np.array([[scale, 0, offset[0]], [0, scale, offset[1]], [0, 0, 1]]) @ push
    foot = push @ [0, 0.5, 1]
    to_plate = np.array([[PLATE / 2, 0, PLATE / 2], [0, PLATE / 2, PLATE / 2], [0, 0, 1]])
    pull = to_plate @ np.linalg.inv(push)
    return tuple((pull / pull[2, 2]).ravel()[:8]), foot[:2] / foot[2]


def _scene(rng: np.random.Generator) -> Image.Image:
    """What is behind a sign: two colors that meet somewhere, things before them, and texture."""
    one, other = SCENERY[rng.integers(len(SCENERY), size=2)]
    mix = _slope(rng, rng.uniform(0.1, 4))[..., None]
    image = mix * one + (1 - mix) * other
    for grid in (4, 9, 24):
        rough = rng.uniform(0, 24) * rng.standard_normal((grid, grid), "float32")
        texture = Image.fromarray(rough).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image += np.asarray(texture)[..., None]
    scene = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    for _ in range(rng.integers(6)):
        color = SCENERY[rng.integers(len(SCENERY))]
        if rng.random() < 0.25:  # a car, an advertisement
            color = rng.integers(0, 256, 3)
        x, y = rng.uniform(-0.1, 1, 2) * SIZE
        width, height = rng.uniform(0.05, 0.6, 2) * SIZE
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        shape((x, y, x + width, y + height), tuple(int(value) for value in color))
    return scene


_ACROSS = (np.arange(SIZE, dtype="float32") + 0.5) / SIZE - 0.5


def _slope(rng: np.random.Generator, width: float) -> np.ndarray:
    """From 0 to 1 across the image, in any direction; the narrower, the sharper the edge."""
    angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
    x, y = math.cos(angle) / width, math.sin(angle) / width
    return np.clip(x * _ACROSS + (y * _ACROSS + 0.5 - offset / width)[:, None], 0, 1)
