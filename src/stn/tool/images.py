"""Image files: where they are, and how they become arrays. Nothing else here opens an image.

Whatever a damaged or hostile file makes of Pillow ends here, as a `UserError` that names the file
and says why; size and number of pixels are looked at before anything is decoded.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from stn.tool.config import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff")
) | {".ppm", ".pgm", ".pbm"}
# In a folder more are tried: better to say that the photographs of a telephone cannot be read
# than to pass over them.
_ALL_SUFFIXES = SUFFIXES.union(
    (".avif", ".dib", ".dng", ".heic", ".heif", ".jp2", ".jpe", ".jxl", ".svg")
)

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb
MAX_JPEG_PIXELS = 500_000_000  # of one that is shrunk as it is read
MAX_PIXELS_OF_FRAMES = 10 * MAX_PIXELS
MAX_SIDE = 1_000_000  # Pillow needs minutes to read a line that is much longer
MAX_BYTES = 2**29

Source = str | os.PathLike[str] | BinaryIO
OnError = Callable[[UserError], Any]


class NothingFoundError(UserError):
    """A path, a pattern or standard input that leads to no file at all."""


# --- finding --------------------------------------------------------------------------------------


class Found(NamedTuple):
    """An image file.

    Attributes:
        source: What to read.
        name: What to call it: the path as it was given, or came from a folder; `-` for an image
            from standard input.
        place: The path relative to the folder that was given, or the bare name of a file; for
            what is written about the image.
    """

    source: str | BinaryIO
    name: str
    place: str


def find_images(
    paths: Iterable[str | os.PathLike[str]],
    *,
    on_error: OnError,
    leave_out: str | os.PathLike[str] | None = None,
) -> Iterator[Found]:
    """Find image files, one after the other.

    Args:
        paths: Files, taken whatever their names are. Folders: all files in them whose suffix is an
            image's, in the order of their names, sub-folders too, but nothing hidden. Patterns
            with `*`, `**`, `?` or `[...]`, if there is no such file; matches are taken as the
            content of a folder. `-`: standard input, either the bytes of one image or a text with
            such a path on each line.
        on_error: Called with what leads to no image: `NothingFoundError` where there is nothing,
            `UserError` where it cannot be looked at.
        leave_out: A folder that is not entered.

    Returns:
        An iterator of the files; they have not been opened.

    Raises:
        UserError: Only if `on_error` raises it.

    Example:
        >>> [found.place for found in find_images(["scans"], on_error=print)]  # doctest: +SKIP
        ['1.png', 'more/2.png']
    """
    left_out = None if leave_out is None else os.path.realpath(leave_out)
    for path in paths:
        text = os.fsdecode(path)
        if text == "-":
            yield from _find_in_stdin(on_error, left_out)
        else:
            yield from _find_at(text, on_error, left_out)


def _find_at(path: str, on_error: OnError, left_out: str | None) -> Iterator[Found]:
    if path and _is_folder(path):
        found = _walk(path, on_error, left_out)
        lack = f"a folder with images. Received: {path!r}, which has no file named as one"
    elif os.path.lexists(path):
        yield Found(path, path, Path(path).name)
        return
    elif glob.has_magic(path):
        found = _match(path, on_error, left_out)
        lack = f"a file, or a pattern that finds images. Received: {path!r}, which finds none"
    else:
        found, lack = (), f"an image file. Received: {path!r}, which is missing"
    empty = True
    for file in found:
        empty = False
        yield file
    if empty:
        on_error(NothingFoundError(f"Expected {lack}"))


def _match(pattern: str, on_error: OnError, left_out: str | None) -> Iterator[Found]:
    root = Path(re.split(r"[*?[]", pattern, maxsplit=1)[0] + "x").parent
    # Unlike pathlib's, it passes over hidden files and finds files by "**".
    for path in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207
        if "**" in pattern and _is_folder(path):
            continue  # what is in it is found too
        for found in _walk(path, on_error, left_out):
            yield found._replace(place=os.path.relpath(found.name, root))


def _walk(root: str, on_error: OnError, left_out: str | None) -> Iterator[Found]:
    pending: list[tuple[str, tuple[str, ...]]] = [(root, ())]
    while pending:
        path, above = pending.pop()
        if not _is_folder(path):
            if Path(path).suffix.lower() in _ALL_SUFFIXES:
                yield Found(path, path, os.path.relpath(path, root))
            continue
        real = os.path.realpath(path)
        if real == left_out:
            continue
        try:
            if real in above:
                raise OSError("it is a link to a folder above it")
            names = sorted(entry.name for entry in Path(path).iterdir())
        except OSError as error:
            reason = error.strerror or error
            on_error(UserError(f"Expected a readable folder. Received: {path!r} ({reason})"))
            continue
        inside = (*above, real)
        for name in reversed(names):
            if not name.startswith("."):
                pending.append((str(Path(path) / name), inside))


def _is_folder(path: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Path(path).is_dir()
    return False


def _find_in_stdin(on_error: OnError, left_out: str | None) -> Iterator[Found]:
    stream: Any = sys.stdin.buffer
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(stream)
    head = stream.peek(1)
    if not head:
        message = "Expected paths or an image on standard input. Received: nothing"
        on_error(NothingFoundError(message))
    elif b"\0" in head or _is_image(head):
        yield Found(io.BytesIO(stream.read(MAX_BYTES + 1)), "-", "stdin")
    else:
        for line in stream:
            path = os.fsdecode(line.rstrip(b"\r\n"))
            if path.strip():
                yield from _find_at(path, on_error, left_out)


def _is_image(head: bytes) -> bool:
    with contextlib.suppress(Exception), _silence():
        Image.open(io.BytesIO(head), formats=FORMATS)
        return True
    return False


# --- reading --------------------------------------------------------------------------------------


def read_image(
    source: Source, *, size: tuple[int, int] | None = None, channels: int | None = None
) -> np.ndarray:
    """Decode an image file: PNG, JPEG, BMP, GIF, WebP, TIFF, PPM or PGM; the first of its frames.

    The orientation a camera noted is applied, and what is transparent gets the color that sets off
    the rest: black behind what is light, white behind what is dark. Grey of more than 8 bits is
    scaled by the range it was made in: 8, 10, 12, 14 or 16 bits, whichever holds its largest value.

    Args:
        source: A path, or a file opened for reading bytes.
        size: `(height, width)` in pixels to resize to, smoothly; None keeps that of the file.
        channels: 1 for grey or 3 for RGB; None gives 3 if any pixel has a color, else 1.

    Returns:
        uint8 array `(height, width, channels)`, values 0 to 255.

    Raises:
        UserError: If the file is missing, is not an image, is damaged, or is larger than 512 MiB
            or 89 million pixels (with a size, 500 million in a JPEG that is not progressive).

    Example:
        >>> read_image("letter.png", size=(28, 28), channels=1).shape  # doctest: +SKIP
        (28, 28, 1)
    """
    enough = None if size is None else (4 * size[0], 4 * size[1])
    with contextlib.closing(read_frames(source, enough=enough, channels=channels)) as decoded:
        return convert(next(decoded)[1], size=size, channels=channels)


def read_frames(
    source: Source,
    *,
    name: str | None = None,
    enough: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Generator[tuple[str, np.ndarray]]:
    """Decode every frame of an image file: of an animation, or the pages of a TIFF.

    Args:
        source: As in `read_image`.
        name: What to call it; the path by default.
        enough: `(height, width)` in pixels that are enough: a larger image is averaged down by a
            whole number, to no less. A JPEG is shrunk as it is read, so it may be larger.
        channels: As in `read_image`.

    Returns:
        An iterator of `(name, image)`. The frames of a file that has several are called `name#0`,
        `name#1` and so on; each is decoded when it is asked for.

    Raises:
        UserError: As `read_image`; where a frame is damaged, after the frames before it.

    Example:
        >>> [name for name, _ in read_frames("film.gif")]  # doctest: +SKIP
        ['film.gif#0', 'film.gif#1']
    """
    if channels not in (None, 1, 3):
        raise UserError(f"Expected channels 1, 3 or None. Received: channels={channels!r}")
    if name is None:
        path = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "")
        name = os.fsdecode(path) if isinstance(path, str | os.PathLike) else ""
    with contextlib.ExitStack() as stack:
        with _explaining(name):
            image = stack.enter_context(_open(stack.enter_context(_open_file(source)), enough))
            # The other picture in the JPEG of a telephone is a preview, or a map of brightness.
            several = image.format != "MPO" and getattr(image, "is_animated", False)
        total = 0
        for index in itertools.count():
            title = f"{name}#{index}" if several else name
            with _explaining(title):
                if index:
                    try:
                        image.seek(index)
                    except EOFError:
                        return
                pixels = image.width * image.height
                if pixels > MAX_PIXELS or max(image.size) > MAX_SIDE:
                    raise _too_large(image.size)
                total += pixels
                if total > MAX_PIXELS_OF_FRAMES:
                    raise _UnsuitableError(
                        f"Expected at most {MAX_PIXELS_OF_FRAMES} pixels in all frames of a file. "
                        "Received: more than that in those up to {title}. Split it"
                    )
                array = np.asarray(_flatten(image, enough))
                array = convert(array.reshape(*array.shape[:2], -1), channels=channels)
            yield title, array
            if not several:
                return


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


def write_marked(path: Path, image: np.ndarray, mark: str) -> None:
    """Write a uint8 array `(height, width, 1 or 3)` as a PNG that carries a text."""
    info = PngImagePlugin.PngInfo()
    info.add_text("stn", mark)
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture.save(path, "PNG", pnginfo=info)


def read_mark(path: Path) -> str | None:
    """The text in a PNG of `write_marked`; None for any other file."""
    with contextlib.suppress(Exception), _silence(), Image.open(path, formats=["PNG"]) as image:
        return image.info.get("stn")
    return None


@contextlib.contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Turn all that can go wrong with an image file into an error that names it."""
    title = repr(name) if name else "the image that was sent"
    formats = ", ".join(FORMATS)
    try:
        with _silence():
            yield
    except _UnsuitableError as error:
        raise UserError(str(error).format(title=title)) from error
    except FileNotFoundError as error:
        raise UserError(f"Expected an image file. Received: {title}, which is missing") from error
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is something else"
        elif isinstance(error, MemoryError):
            reason = "there is not enough memory for it"
        text = " ".join(str(reason).split())[:200] or type(error).__name__
        raise UserError(
            f"Expected an image ({formats}). Received: {title}, which cannot be read as one "
            f"({text}). Replace or remove it"
        ) from error


class _UnsuitableError(Exception):
    """What keeps an image from being used; its text has a place for the title."""


def _too_large(size: tuple[int, int] | None) -> _UnsuitableError:
    found = "more" if size is None else f"{size[0]} x {size[1]}"
    return _UnsuitableError(
        f"Expected an image of at most {MAX_PIXELS} pixels, {MAX_SIDE} a side. "
        f"Received: {{title}} ({found}). Make it smaller"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Pillow from warning of what is looked at here, or does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _open_file(source: Source) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        if isinstance(source, str | os.PathLike):
            mode = Path(source).stat().st_mode
            if not stat.S_ISREG(mode):  # opening a pipe would wait, perhaps for ever
                raise OSError(f"it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
            source = stack.enter_context(Path(source).open("rb"))
        length = source.seek(0, io.SEEK_END)
        source.seek(0)
        if not length:
            raise OSError("it is empty")
        if length > MAX_BYTES:
            raise _UnsuitableError(
                f"Expected a file of at most {MAX_BYTES >> 20} MiB. Received: {{title}}, which is "
                "larger. Make it smaller"
            )
        yield source


def _open(file: BinaryIO, enough: tuple[int, int] | None) -> Any:
    """Open an image without decoding it; the size of what is opened is still to be looked at."""
    try:
        image: Any = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        image = None
    if enough and (image is None or image.width * image.height > MAX_PIXELS):
        file.seek(0)
        with contextlib.suppress(SyntaxError):  # it is no JPEG
            image = JpegImagePlugin.JpegImageFile(file)  # which has no limit of its own
            # With the colors in several scans, all coefficients would be held in memory. Pillow has
            # stopped behind the header of the first.
            length = 6 + 2 * image.layers
            file.seek(-length, io.SEEK_CUR)
            whole = file.read(3) == bytes([0, length, image.layers])
            if "progressive" in image.info or not whole:
                enough = None
    if image is None:
        raise _too_large(None)
    if (
        enough
        and isinstance(image, JpegImagePlugin.JpegImageFile)
        and image.width * image.height <= MAX_JPEG_PIXELS
    ):
        image.draft(None, (enough[1], enough[0]))
    return image


def _flatten(image: Image.Image, enough: tuple[int, int] | None) -> Image.Image:
    """Decode any mode of Pillow to 8-bit grey ("L") or RGB, solid and upright."""
    image.load()
    turn = _turn(image)
    mode = "L" if image.mode in ("1", "L") else "RGB"
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        image, mode = _scale_to_8_bits(image), "L"
    elif image.mode == "F":
        raise _UnsuitableError(
            "Expected whole numbers as pixels. Received: floating-point numbers in {title}. "
            "Convert it to 8 bits per channel"
        )
    elif image.has_transparency_data:
        mode = "RGBA"
    if image.mode != mode:
        image = image.convert(mode)
    if enough and (factor := min(image.width // enough[1], image.height // enough[0])) > 1:
        image = image.reduce(factor)
    if turn is not None:
        image = image.transpose(turn)
    return _set_off(image) if mode == "RGBA" else image


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise _UnsuitableError(
            f"Expected grey values of at most 16 bits. Received: {low} to {high} in {{title}}. "
            "Convert it to 8 bits per channel"
        )
    # Cameras and scanners of 10, 12 or 14 bits leave the rest of 16 empty.
    top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    table = (np.arange(top + 1) * 255 + top // 2) // top
    return Image.fromarray(table.astype(np.uint8)[values])


def _set_off(image: Image.Image) -> Image.Image:
    """Put what is visible in an image on black if it is light, on white if it is dark."""
    alpha = np.asarray(image.getchannel("A"))
    light = np.einsum("ij,ij", np.asarray(image.convert("L")), alpha, dtype=np.int64)
    white = light < 127.5 * alpha.sum(dtype=np.int64)
    solid = Image.new("RGBA", image.size, (255, 255, 255, 255) if white else (0, 0, 0, 255))
    return Image.alpha_composite(solid, image).convert("RGB")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright, by the note of the camera (EXIF orientation)."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # notes that are damaged do not keep an image from being read
        return None


def _has_color(pixels: np.ndarray) -> bool:
    red = pixels[:, :, :1]
    return bool((pixels[:, :, 1:] != red).any())
