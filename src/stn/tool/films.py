"""The film: an animation of the pictures that the monitor drew."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stn.tool import pictures, runs

FIRST_MS, FRAME_MS, LAST_MS = 1200, 600, 2500

FRAME_BYTES = 140_000  # of a film, at most


def write_film(frames: Sequence[Path], path: Any) -> None:
    """Make an animation of pictures; it loops, and rests on the first and the last one.

    Args:
        frames: The pictures, in order. Smaller ones are padded to the size of the largest.
        path: Where it goes, a GIF or, with the suffix `.webp`, an animated WebP; written completely
            or not at all.

    Raises:
        ValueError: If there is no picture.

    Example:
        >>> write_film(run.frames(), run.film_file)  # doctest: +SKIP
    """
    # Noisy photographs get fewer colors, or a lower quality, until they fit.
    webp = str(path).endswith(".webp")
    for level in (100, 80, 50) if webp else (255, 96, 32):
        film = webp_bytes(frames, level) if webp else film_bytes(frames, level)
        if len(film) <= FRAME_BYTES * len(frames):
            break
    runs.write_bytes(path, film)


def write_films(run: runs.Run) -> None:
    """Make the films of a run of its frames, if it still has any."""
    if frames := run.frames():
        for film in (run.film_file, run.webp_file):
            write_film(frames, film)


def film_bytes(frames: Sequence[Path], colors: int) -> bytes:
    """The GIF of `write_film`, with so many colors."""
    return _animate("GIF", indexed(frames, colors), optimize=False)


def webp_bytes(frames: Sequence[Path], quality: int) -> bytes:
    """The WebP of `write_film`; without loss at quality 100."""
    shown = _same_size(frames)
    return _animate("WEBP", shown, lossless=quality == 100, quality=quality, method=4)


def _animate(kind: str, shown: list[Image.Image], **options: Any) -> bytes:
    times = [FRAME_MS] * len(shown)
    times[0], times[-1] = FIRST_MS, LAST_MS
    buffer = io.BytesIO()
    shown[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=shown[1:],
        duration=times if len(times) > 1 else LAST_MS,
        loop=0,
        **options,
    )
    return buffer.getvalue()


def indexed(frames: Sequence[Path], colors: int) -> list[Image.Image]:
    """The pictures in one size, with one palette that suits all of them."""
    shown = _same_size(frames)
    palette = _palette(shown, colors)
    return [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in shown]


def _same_size(frames: Sequence[Path]) -> list[Image.Image]:
    if not frames:
        raise ValueError("Expected at least one frame. Received: none")
    shown = []
    for frame in frames:
        with runs.reading(frame), Image.open(frame) as image:
            shown.append(image.convert("RGB"))
    size = max(p.width for p in shown), max(p.height for p in shown)
    for index, picture in enumerate(shown):
        if picture.size != size:
            shown[index] = Image.new("RGB", size, pictures.PAPER)
            shown[index].paste(picture)
    return shown


def _palette(shown: list[Image.Image], colors: int) -> Image.Image:
    few = shown[:: max(1, len(shown) // 6)]
    sample = Image.fromarray(np.concatenate([np.asarray(p)[::2, 1::2] for p in few]))
    # The few colors that carry meaning are set, the rest adapts to the images. What is almost one
    # of them is left out: Pillow would take it instead, and white paper would turn gray.
    fixed = np.array([*pictures.COLORS, (0, 0, 0)])
    found = sample.quantize(colors - len(fixed), Image.Quantize.MEDIANCUT).getpalette() or []
    adapted = np.reshape(found, (-1, 3))
    apart = np.abs(adapted[:, None] - fixed).max(axis=2).min(axis=1) > 6
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([fixed, adapted[apart]]).astype(int).ravel().tolist())
    return palette
