"""Pictures in terminals that can show them: kitty's protocol, iTerm's, and sixels."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

PROTOCOLS = ("kitty", "iterm", "sixel")


def protocol(environment: Mapping[str, str] = os.environ) -> str | None:
    """Which of `PROTOCOLS` the terminal says it speaks, or None.

    Sixels cannot be asked for by a variable that all terminals set; those that are known to draw
    them are listed here.

    Args:
        environment: The environment variables.

    Example:
        >>> protocol({"TERM": "xterm-kitty"}), protocol({"TERM": "xterm-256color"})
        ('kitty', None)
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith("screen"):
        return None  # they swallow what they do not know
    if "kitty" in term or environment.get("KITTY_WINDOW_ID") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty"):
        return "iterm"
    if "sixel" in term or term in ("mlterm", "foot", "foot-extra", "contour", "yaft-256color"):
        return "sixel"
    return None


def encode(picture: Image.Image, way: str) -> str:
    """The characters that make a terminal show a picture.

    Args:
        picture: Of any mode.
        way: One of `PROTOCOLS`.

    Returns:
        Text for standard output, with a line break at its end.

    Example:
        >>> encode(Image.new("RGB", (1, 1)), "iterm")[1:13]
        ']1337;File=i'
    """
    if way == "sixel":
        return _sixels(picture) + "\n"
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if way == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(buffer.getvalue())}:{data}\x07\n"
    # kitty takes at most 4,096 characters at a time; m=0 ends the last of them.
    parts = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    more = [f"m={int(i < len(parts) - 1)}" for i in range(len(parts))]
    more[0] = f"f=100,a=T,{more[0]}"
    return "".join(f"\x1b_G{m};{p}\x1b\\" for m, p in zip(more, parts, strict=True)) + "\n"


def _sixels(picture: Image.Image) -> str:
    """Bands of six rows; in each, one run of characters per color, whose bits are the rows."""
    indexed = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colors = np.reshape(indexed.getpalette() or [], (-1, 3))
    pixels = np.asarray(indexed)
    height, width = pixels.shape
    out = [f'\x1bPq"1;1;{width};{height}']
    for index in np.unique(pixels):
        red, green, blue = (round(int(value) * 100 / 255) for value in colors[index])
        out.append(f"#{index};2;{red};{green};{blue}")
    weights: Any = 1 << np.arange(6)[:, None]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        for index in np.unique(band):
            bits = ((band == index) * weights[: len(band)]).sum(axis=0) + 63
            ends = np.flatnonzero(np.append(bits[1:] != bits[:-1], True))
            lengths = np.diff(np.append(-1, ends))
            runs = (
                f"!{n}{chr(bits[end])}" if n > 3 else chr(bits[end]) * n
                for end, n in zip(ends, lengths, strict=True)
            )
            out.append(f"#{index}{''.join(runs)}$")
        out.append("-")
    return "".join(out) + "\x1b\\"
