"""Pictures made of pixels: examples, and what a transformer makes of them."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stn.tool import runs

Color = tuple[int, int, int]

Head = tuple[Any, Any, Sequence[Any]]
"""Of one head of a transformer: outputs, outlines and lines, as in `draw_frame`."""

PAPER: Color = (255, 255, 255)
CARD: Color = (240, 242, 245)
EDGE: Color = (190, 196, 204)
INK: Color = (28, 32, 38)
GRAY: Color = (92, 100, 112)
OUTLINE: Color = (255, 92, 20)  # over 2.9:1 against white and 7:1 against black
HALO: Color = (60, 14, 0)  # keeps the outline apart from mid-tones of its own brightness
RIGHT: Color = (20, 120, 54)
WRONG: Color = (196, 32, 44)
BAR: Color = (31, 95, 174)
OTHERS: tuple[Color, ...] = ((168, 96, 255), (0, 170, 120))  # outlines of further heads
COLORS = (PAPER, CARD, EDGE, INK, GRAY, OUTLINE, *OTHERS, HALO, RIGHT, WRONG)
"""Those that carry meaning."""

PAIR = np.array([[0.3, 0.75, 1.0], [1.0, 0.75, 0.3]], "float32")
"""Two images in one: the colors of the first and of the second channel, light blue and amber."""

SMOOTH = 3  # pictures are drawn this much larger, then averaged: Pillow's lines are jagged


def draw_frame(
    inputs: Any,
    outputs: Any | None,
    outlines: Any | None,
    *,
    title: str,
    subtitle: str = "",
    captions: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    lines: Sequence[Any] = (),
    more: Sequence[Head] = (),
    columns: int = 8,
    legend: bool = True,
) -> Image.Image:
    """Draw examples, where the transformer looks in each, and what it makes of them.

    The outline of the sampling grid is drawn on the input, its first corner marked by a dot. The
    same dot is at the top-left corner of the output, so the orientation can be read. What lies
    outside the image is drawn on a margin around it, and cut off beyond that margin.

    Args:
        inputs: Images `(n, height, width, channels)`, uint8 or floats in [0, 1]. Two channels are
            drawn over each other, in two colors; more than 3 as the gray of their mean.
        outputs: The transformed images, likewise; another size and other channels are fine. `None`
            for a model without a transformer: only the inputs are drawn, and the picture says so.
        outlines: Points `(n, k, 2)` around the border of the sampling grid, starting at the
            output's top-left corner, in pixels `(x, y)` of the input with pixel centers at
            integers. They may lie outside the image; segments that touch a value that is not
            finite are left out. `None` draws no outline.
        title: The heading, such as "Epoch 3 of 12".
        subtitle: A second, quieter line.
        lines: Lines inside the outlines, `(n, k, 2)` each, in pixels like these; drawn thinner.
        more: The same three of further heads, in other colors, their outputs one below the other.
        captions: A text per example. One that starts with "✓" is green, with "✗" red.
        notes: A quieter text per example, below the caption.
        columns: Examples side by side.
        legend: Whether to say below how to read the picture.

    Returns:
        The picture. Its size depends on the number and the sizes of the images, not on the texts,
        unless a title is wider than everything else.

    Raises:
        ValueError: If shapes or numbers of examples do not fit together.

    Example:
        >>> images = np.zeros((2, 28, 28, 1), "uint8")
        >>> border = np.array([[[3, 3], [24, 3], [24, 24], [3, 24]]] * 2, "float32")
        >>> draw_frame(images, images, border, title="Epoch 1 of 1").mode
        'RGB'
    """
    tiles = _tiles("inputs", inputs)
    count, height, width = tiles.shape[:3]
    results, points, inner = [], [], []
    for head_outputs, head_outlines, head_lines in ((outputs, outlines, lines), *more):
        if head_outputs is not None:
            results.append(_tiles("outputs", head_outputs))
        if head_outlines is not None:
            points.append(np.asarray(head_outlines, np.float64))
            if points[-1].ndim != 3 or points[-1].shape[2] != 2:
                raise ValueError(
                    f"Expected outlines of shape (n, k, 2). Received: {points[-1].shape}"
                )
        inner.append([np.asarray(line, np.float64) for line in head_lines])
    for name, value in (
        *(("outputs", result) for result in results),
        *(("outlines", outline) for outline in points),
        ("captions", captions),
        ("notes", notes),
    ):
        if value is not None and len(value) != count:
            raise ValueError(f"Expected one of {name} per input, {count}. Received: {len(value)}")
    if columns < 1:
        raise ValueError(f"Expected columns >= 1. Received: columns={columns}")

    tile_width, tile_height = _fit(width, height)
    result_sizes = [_fit(result.shape[2], result.shape[1]) for result in results]
    margin = 20 if points else 10
    card_width = max(tile_width, *(size[0] for size in result_sizes), 0) + 2 * margin
    zone_height = tile_height + 2 * margin
    result_height = sum(size[1] + 14 for size in result_sizes)
    texts_height = (0 if captions is None else 22) + (0 if notes is None else 16)
    card_height = zone_height + result_height + texts_height

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    pad, gap, labels, top, bottom = 24, 8, 50, 76, 44
    big, normal, small = _font(20, bold=True), _font(13), _font(12)
    names = _font(13, mono=True)
    title, subtitle = _one_line(title), _one_line(subtitle)
    key = _legend(outlined=bool(points), transformed=bool(results) or not legend)
    cards = columns * (card_width + gap) - gap
    texts = max(big.getlength(title), normal.getlength(subtitle), key.width)
    content = max(labels + cards, math.ceil(texts))
    size = (content + 2 * pad, top + rows * (card_height + gap) - gap + bottom)
    frame = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(frame)
    draw.text((pad, 35), title, INK, big, "ls")
    draw.text((pad, 58), subtitle, GRAY, normal, "ls")
    frame.paste(key, (pad + (labels if cards >= key.width else 0), size[1] - 32))

    scale = np.array([tile_width / width, tile_height / height])
    corner = ((card_width - tile_width) // 2, margin)
    for index in range(count):
        row, column = divmod(index, columns)
        left = pad + labels + column * (card_width + gap)
        upper = top + row * (card_height + gap)
        draw.rectangle((left, upper, left + card_width - 1, upper + card_height - 1), CARD)
        # Pixel centers are at integers, so the tile begins at -0.5.
        paths = [(outline[index] + 0.5) * scale + corner for outline in points]
        within = [[(line[index] + 0.5) * scale + corner for line in own] for own in inner]
        tile = _magnify(tiles[index], (tile_width, tile_height))
        frame.paste(_zone(tile, corner, (card_width, zone_height), paths, within), (left, upper))
        if column == 0 and legend:
            at = (left - 8, upper + margin + tile_height / 2)
            draw.text(at, "input", GRAY, small, "rm")
        y = upper + zone_height
        for head, (result, size_) in enumerate(zip(results, result_sizes, strict=True)):
            x = left + (card_width - size_[0]) // 2
            _paste_result(frame, result[index], (x, y), size_, _color(head) if points else None)
            if column == 0:
                text = f"output {head + 1}" if len(results) > 1 else "output"
                draw.text((left - 8, y + size_[1] / 2), text, GRAY, small, "rm")
            y += size_[1] + 14
        if captions is not None:
            text = _shorten(_one_line(captions[index]), card_width - 6, names)
            color = {"✓": RIGHT, "✗": WRONG}.get(text[:1], INK)
            at = (left + card_width / 2, upper + zone_height + result_height + 14)
            draw.text(at, text, color, names, "ms")
        if notes is not None:
            text = _shorten(_one_line(notes[index]), card_width - 6, small)
            at = (left + card_width / 2, upper + card_height - 8)
            draw.text(at, text, GRAY, small, "ms")
    return frame


def draw_example(
    image: Any,
    output: Any | None,
    outline: Any | None,
    *,
    lines: Sequence[Any] = (),
    more: Sequence[Head] = (),
    factor: int = 1,
) -> Image.Image:
    """Draw one example as `draw_frame` does, the output beside the input, on nothing.

    Args:
        image: `(height, width, channels)`, uint8 or floats in [0, 1].
        output: What the transformer makes of it, likewise; None where there is no transformer.
        outline: Points `(k, 2)`, as in `draw_frame`; they may be left out.
        lines: Lines inside the outline, `(k, 2)` each.
        more: The same three of further heads.
        factor: So many times as large as in `draw_frame`.

    Returns:
        The picture, transparent around the images.

    Example:
        >>> draw_example(np.zeros((28, 28, 1)), None, None).mode
        'RGBA'
    """
    tile = _tiles("image", np.asarray(image)[None])[0]
    size, margin = _fit(tile.shape[1], tile.shape[0], factor), 0 if outline is None else 22 * factor
    scale, corner = np.array(size) / tile.shape[1::-1], (margin, margin)
    heads = ((output, outline, lines), *more)
    paths, within = [], []
    for _, path, own in heads:
        if path is not None:
            paths.append((np.asarray(path, np.float64) + 0.5) * scale + corner)
        within.append([(np.asarray(line, np.float64) + 0.5) * scale + corner for line in own])
    zone_size = (size[0] + 2 * margin, size[1] + 2 * margin)
    zone = _zone(_magnify(tile, size), corner, zone_size, paths, within, background=(0, 0, 0, 0))
    results = [_tiles("output", np.asarray(one)[None])[0] for one, _, _ in heads if one is not None]
    if not results:
        return zone
    sizes, gap = [_fit(result.shape[1], result.shape[0], factor) for result in results], 12
    height = max(zone.height, *(size[1] + 2 * margin for size in sizes))
    width = zone.width + sum(gap + size[0] for size in sizes) + margin
    picture = Image.new("RGBA", (width, height))
    picture.paste(zone, (0, (height - zone.height) // 2))
    x = zone.width + gap
    for head, (result, size) in enumerate(zip(results, sizes, strict=True)):
        at = (x, (height - size[1]) // 2)
        _paste_result(picture, result, at, size, _color(head) if paths else None)
        x += size[0] + gap
    return picture


def draw_inspection(
    image: Any,
    output: Any | None,
    outline: Any | None,
    lines: Sequence[Any] = (),
    *,
    more: Sequence[Head] = (),
    title: str,
    words: str,
    classes: Sequence[tuple[str, float]],
) -> Image.Image:
    """Draw one image large: as it is, with the sampling grid on it, straightened, and named.

    Args:
        image: As in `draw_example`.
        output: As in `draw_example`.
        outline: As in `draw_example`.
        lines: As in `draw_example`.
        more: As in `draw_example`.
        title: A heading.
        words: What the transformer did.
        classes: Names and probabilities, the most probable first.

    Example:
        >>> parts = {"title": "a.png", "words": "left as it is", "classes": [("a", 1.0)]}
        >>> draw_inspection(np.zeros((28, 28, 1)), None, None, **parts).mode
        'RGB'
    """
    tiles = [("input", draw_example(image, None, None, factor=2))]
    if outline is not None:
        others = [(None, path, own) for _, path, own in more]
        looks = draw_example(image, None, outline, lines=lines, more=others, factor=2)
        tiles.append(("where it looks", looks))
    for head, result in enumerate((output, *(result for result, _, _ in more)), 1):
        if result is not None:
            name = f"straightened {head}" if more else "straightened"
            tiles.append((name, draw_example(result, None, None, factor=2)))
    big, normal, small = _font(20, bold=True), _font(14), _font(12)
    pad, gap = 24, 20
    mono = _font(14, mono=True)
    widest = max((mono.getlength(_one_line(name)) for name, _ in classes), default=0)
    names = min(130, max(24, math.ceil(widest))) + 12
    height = max(tile.height for _, tile in tiles)
    texts = max(big.getlength(title), normal.getlength(words))
    width = max(sum(tile.width + gap for _, tile in tiles) - gap, math.ceil(texts), 420)
    top, step = 84, 24
    size = (width + 2 * pad, top + height + 40 + step * len(classes) + pad)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((pad, 38), _one_line(title), INK, big, "ls")
    draw.text((pad, 64), _one_line(words), INK, normal, "ls")
    x = pad
    for name, tile in tiles:
        sheet.paste(tile, (x, top + (height - tile.height) // 2), tile)
        draw.text((x + tile.width / 2, top + height + 16), name, GRAY, small, "ms")
        x += tile.width + gap
    bar = size[0] - 2 * pad - names - 60
    for i, (name, probability) in enumerate(classes):
        y = top + height + 40 + i * step
        text = _shorten(_one_line(name), names - 12, mono)
        draw.text((pad, y + step / 2), text, INK, mono, "lm")
        x = pad + names
        draw.rectangle((x, y + 6, x + bar, y + step - 7), CARD)
        draw.rectangle((x, y + 6, x + round(bar * probability), y + step - 7), BAR)
        draw.text((size[0] - pad, y + step / 2), f"{probability:.1%}", GRAY, normal, "rm")
    return sheet


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture as PNG, all of it or nothing."""
    with runs.atomic(path) as temporary:
        picture.save(temporary, "PNG")


def draw_averages(before: Any, after: Any, class_names: Sequence[str]) -> Image.Image:
    """Draw the average image of each class, before and after the transformer, side by side.

    Args:
        before: `(classes, height, width, channels)`, values in [0, 1]; NaN leaves a class out.
        after: The same of the outputs, maybe of another size.
        class_names: The names of the classes; at most 62 are drawn.

    Returns:
        The picture. Each average is brightened to white, so that all can be seen.

    Example:
        >>> draw_averages(np.ones((2, 8, 8, 1)), np.ones((2, 4, 4, 1)), "ab").mode
        'RGB'
    """
    seen = [i for i in range(len(class_names)) if np.isfinite(before[i]).all()][:62]
    font, small = _font(13, bold=True, mono=True), _font(12)
    text = "Average image of each class: input on the left, straightened on the right"
    lines = (text, "Each is brightened by itself until its lightest spot is white")
    width, height, gap, columns, label = 56, 56, 14, min(8, max(len(seen), 1)), 26
    rows = math.ceil(len(seen) / columns)
    step = (2 * width + 4 + gap, height + label + gap)
    top = 42
    texts = math.ceil(max(map(small.getlength, lines)))
    size = (max(columns * step[0], texts) + 2 * gap, rows * step[1] + 2 * gap + top)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((gap, 24 + 18 * i), line, GRAY, small, "ls")
    for place, index in enumerate(seen):
        row, column = divmod(place, columns)
        x, y = gap + column * step[0], top + gap + row * step[1]
        name = _shorten(_one_line(str(class_names[index])), 2 * width + 4, font)
        draw.text((x + width + 2, y + 16), name, INK, font, "ms")
        for side, images in enumerate((before, after)):
            image = images[index]
            tile = _tiles("averages", (image / max(float(image.max()), 1e-6))[None])[0]
            picture = Image.fromarray(tile).resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(picture, (x + side * (width + 4), y + label - 4))
    return sheet


def _tiles(name: str, images: Any) -> np.ndarray:
    """Any images as uint8 RGB `(n, height, width, 3)`."""
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"Expected {name} of shape (n, height, width, channels), none of them 0. "
            f"Received: shape {images.shape}"
        )
    if images.dtype != np.uint8 and images.dtype.kind in "iuc":
        raise ValueError(f"Expected {name} of uint8 or floats. Received: dtype {images.dtype}")
    if images.dtype != np.uint8:
        images = np.nan_to_num(images.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        images = np.clip(images, 0.0, 1.0) * 255.0
    if images.shape[3] == 2:
        images = np.minimum(images.astype(np.float32) @ PAIR, 255.0)
        images = np.rint(images).astype(np.uint8)
    if images.shape[3] != 3:
        images = images.mean(axis=3, dtype=np.float32, keepdims=True)
    if images.dtype != np.uint8:
        images = np.rint(images).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))


def _fit(width: int, height: int, factor: int = 1) -> tuple[int, int]:
    """The size of a tile: its longer side 84 to 96 px, by a whole factor where there is one."""
    longer = max(width, height)
    whole = 96 * factor // longer
    times = whole if whole * longer >= 84 * factor else 90 * factor / longer
    return max(6, round(width * times)), max(6, round(height * times))


def _magnify(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resize without blur: every source pixel is a rectangle of its exact share of the area."""
    image = Image.fromarray(pixels)
    if size == image.size:
        return image
    factor = math.ceil(max(size[0] / image.width, size[1] / image.height))
    larger = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return larger if larger.size == size else larger.resize(size, Image.Resampling.BOX)


def _zone(
    tile: Image.Image,
    corner: tuple[int, int],
    size: tuple[int, int],
    paths: Sequence[np.ndarray],
    within: Sequence[Sequence[np.ndarray]],
    background: Color | tuple[int, int, int, int] = CARD,
) -> Image.Image:
    """The input with its margin and, over both, the outline of each head and lines inside."""
    s = SMOOTH
    zone = Image.new("RGB" if len(background) == 3 else "RGBA", size, background)
    x, y = corner
    ImageDraw.Draw(zone).rectangle((x - 1, y - 1, x + tile.width, y + tile.height), EDGE)
    zone.paste(tile, corner)
    if not paths:
        return zone
    zone = zone.resize((size[0] * s, size[1] * s), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(zone)
    low, high = -20.0 * s, np.array(size) * s + 20.0 * s
    for head, (path, lines) in enumerate(zip(paths, within, strict=True)):
        outline = _strokes(path * s, low, high)
        thin = [stroke for line in lines for stroke in _strokes(line * s, low, high, closed=False)]
        for strokes, widths in ((thin, (1.7, 1.0)), (outline, (3.5, 2.2))):
            for color, thickness in zip((HALO, _color(head)), widths, strict=True):
                for stroke in strokes:
                    draw.line(stroke, color, round(thickness * s), joint="curve")
        if len(path) and np.isfinite(path[0]).all() and np.abs(path[0]).max() < 1e5:
            _draw_dot(draw, path[0, 0] * s, path[0, 1] * s, s, _color(head))
    return zone.reduce(s)


def _color(head: int) -> Color:
    """The color of the outline of a head."""
    return (OUTLINE, *OTHERS)[head % (1 + len(OTHERS))]


def _paste_result(
    picture: Image.Image,
    result: np.ndarray,
    at: tuple[int, int],
    size: tuple[int, int],
    color: Color | None,
) -> None:
    """Draw what a head gives, framed in its color, with the mark of the first corner."""
    x, y = at
    edge = 1 if color is None else 2
    box = (x - edge, y - edge, x + size[0] + edge - 1, y + size[1] + edge - 1)
    ImageDraw.Draw(picture).rectangle(box, color or EDGE)
    picture.paste(_magnify(result, size), at)
    if color is not None:
        dot = _dot(color)
        place = (x - 1 - dot.width // 2, y - 1 - dot.height // 2)
        if picture.mode == "RGBA":
            picture.alpha_composite(dot, place)
        else:
            picture.paste(dot, place, dot)


def _strokes(
    path: np.ndarray, low: Any, high: Any, *, closed: bool = True
) -> list[list[tuple[float, float]]]:
    """Close a path and cut it to a box (Liang-Barsky), so that no wild value reaches Pillow."""
    with np.errstate(all="ignore"):
        start = np.clip(path, -1e9, 1e9)  # keeps NaN; infinities are dropped below
        start[~np.isfinite(path)] = np.nan
        step = np.roll(start, -1, axis=0) - start
        first, second = (low - start) / step, (high - start) / step
        level = step == 0
        inside = (start >= low) & (start <= high)
        enter = np.where(level, np.where(inside, -np.inf, np.inf), np.minimum(first, second))
        leave = np.where(level, np.where(inside, np.inf, -np.inf), np.maximum(first, second))
        enter = np.maximum(enter.max(axis=1), 0.0)
        leave = np.minimum(leave.min(axis=1), 1.0)
        heads = start + enter[:, None] * step
        tails = start + leave[:, None] * step
        keep = enter <= leave  # False for NaN
        keep[-1] &= closed
    strokes: list[list[tuple[float, float]]] = []
    joined = False
    for index in np.flatnonzero(keep):
        if not (joined and enter[index] == 0.0 and keep[index - 1]):
            strokes.append([tuple(heads[index])])
        strokes[-1].append(tuple(tails[index]))
        joined = leave[index] == 1.0
    if strokes and keep.all() and len(strokes) == 1 and len(strokes[0]) > 2:
        strokes[0].append(strokes[0][1])  # once around and one further: the first corner is joined
    return strokes


def _draw_dot(
    draw: ImageDraw.ImageDraw, x: float, y: float, s: int, color: Color = OUTLINE
) -> None:
    for radius, fill in ((6.0, HALO), (5.2, PAPER), (3.4, color)):
        r = radius * s
        draw.ellipse((x - r, y - r, x + r, y + r), fill)


def _dot(color: Color = OUTLINE) -> Image.Image:
    """The mark of the first corner, for pasting."""
    s = SMOOTH * 2
    dot = Image.new("RGBA", (13 * s, 13 * s), (*HALO, 0))
    _draw_dot(ImageDraw.Draw(dot), 6.5 * s, 6.5 * s, s, color)
    return dot.reduce(s)


def _legend(*, outlined: bool, transformed: bool) -> Image.Image:
    """One line that says how to read the picture."""
    legend = Image.new("RGB", (800, 20), PAPER)
    draw = ImageDraw.Draw(legend)
    font = _font(12)
    x = 0

    def write(text: str, indent: int = 0) -> None:
        nonlocal x
        draw.text((x + indent, 14), text, GRAY, font, "ls")
        x += indent + round(font.getlength(text)) + 18

    if not transformed:
        write("no transformer: the model sees the input as it is")
    if outlined:
        draw.rectangle((x, 3, x + 16, 16), None, OUTLINE, 2)
        write("where the layer looks", 24)
        dot = _dot()
        legend.paste(dot, (x, 3), dot)
        write("top left of the output", 20)
    return legend.crop((0, 0, max(1, x - 16), 20))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shorten(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@functools.lru_cache
def _font(size: int, *, bold: bool = False, mono: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # its fonts come with it, so the pictures look the same everywhere

    # Names of classes are monospaced: there I and l, O and 0 are unlike.
    name = f"DejaVuSans{'Mono' if mono else ''}{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
