"""Pictures for terminals, decoded again."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from stn.tool import terminal

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 40, 3), dtype="uint8")
PIXELS[:, 10:30] = (255, 92, 20)
PICTURE = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb"}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "3"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "3"}, None),
    ],
)
def test_protocol(environment, expected):
    assert terminal.protocol(environment) == expected


def same(data):
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_iterm():
    text = terminal.encode(PICTURE, "iterm")
    size, data = re.fullmatch(r"\x1b]1337;File=inline=1;size=(\d+):(.*)\x07\n", text).groups()
    data = base64.b64decode(data)
    assert len(data) == int(size)
    same(data)


def test_kitty_in_parts():
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype="uint8")
    for pixels in (PIXELS, noise):
        text = terminal.encode(Image.fromarray(pixels), "kitty")
        parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
        assert parts[0][0].startswith("f=100,a=T,")
        assert [keys.endswith("m=0") for keys, _ in parts] == [False] * (len(parts) - 1) + [True]
        assert max(len(data) for _, data in parts) <= 4096
        with Image.open(io.BytesIO(base64.b64decode("".join(d for _, d in parts)))) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)
    assert len(parts) > 1


def test_sixels():
    # Few colors, so that none is lost, and a height that six does not divide.
    few = Image.fromarray(PIXELS // 128 * 255)
    text = terminal.encode(few, "sixel")
    width, height, body = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\\n', text).groups()
    found = np.zeros((int(height) + 6, int(width), 3))
    colors, x, top, color = {}, 0, 0, None
    pattern = r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|(\$)|(-)"
    for match in re.finditer(pattern, body):
        index, r, g, b, chosen, count, repeated, single, back, down = match.groups()
        if index:
            colors[index] = np.array([int(r), int(g), int(b)]) * 255 / 100
        elif chosen:
            color = colors[chosen]
        elif back:
            x = 0
        elif down:
            x, top = 0, top + 6
        else:
            n, bits = int(count or 1), ord(repeated or single) - 63
            for row in range(6):
                if bits >> row & 1:
                    found[top + row, x : x + n] = color
            x += n
    np.testing.assert_allclose(found[: int(height)], np.asarray(few), atol=1.5)
