"""Image files: which are found, what becomes of every kind, and what is said about bad ones."""

import collections
import io
import os
import resource
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from stn.tool import images
from stn.tool.config import UserError
from stn.tool.images import NothingFoundError, find_images, read_frames, read_image

pytestmark = pytest.mark.once

# --- finding -------------------------------------------------------------------------------------


@pytest.fixture
def find(tmp_path, monkeypatch):
    """Find images in a folder of files of these names; the places, and the complaints."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        "x/2.tif",
        "x/10.gif",
        "x/y/z.webp",
        "w/photo.HEIC",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    for name in (".hidden.png", ".cache/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")

    def find(*paths, **options):
        errors = []
        found = list(find_images(paths, on_error=errors.append, **options))
        return found, [str(error) for error in errors]

    return find


def names(found):
    return [image.name for image in found]


def test_a_folder_is_walked_in_order(find):
    found, errors = find(".")
    everything = ["a.JPG", "b.png", "w/photo.HEIC", "x/10.gif", "x/2.tif", "x/y/z.webp"]
    assert (names(found), errors) == (everything, [])
    found, errors = find("x", "b.png", "x/")
    assert names(found) == ["x/10.gif", "x/2.tif", "x/y/z.webp", "b.png", *everything[3:]]
    assert [image.place for image in found][:4] == ["10.gif", "2.tif", "y/z.webp", "b.png"]


def test_a_file_is_taken_whatever_its_name(find, tmp_path):
    (tmp_path / "[1].png").write_bytes(b"?")
    paths = ["notes.txt", ".hidden.png", "[1].png", tmp_path / "b.png"]
    found, errors = find(*paths)
    assert (names(found), errors) == ([str(path) for path in paths], [])


@pytest.mark.parametrize(
    ("pattern", "expected", "places"),
    [
        ("*.png", ["b.png"], ["b.png"]),
        ("x/*", ["x/10.gif", "x/2.tif", "x/y/z.webp"], ["10.gif", "2.tif", "y/z.webp"]),
        ("x/**", ["x/10.gif", "x/2.tif", "x/y/z.webp"], ["10.gif", "2.tif", "y/z.webp"]),
        ("**/[2z].*", ["x/2.tif", "x/y/z.webp"], ["x/2.tif", "x/y/z.webp"]),
        ("?.JPG", ["a.JPG"], ["a.JPG"]),
    ],
)
def test_patterns(find, pattern, expected, places):
    found, errors = find(pattern)
    assert (names(found), errors) == (expected, [])
    assert [image.place for image in found] == places


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.png", "Expected an image file. Received: 'none.png', which is missing"),
        ("", "Received: '', which is missing"),
        ("a\0b", r"Received: 'a\x00b', which is missing"),
        ("n" * 9999, "which is missing"),
        ("*.bmp", "a pattern that finds images. Received: '*.bmp', which finds none"),
        ("*.txt", "Received: '*.txt', which finds none"),
        ("empty", "a folder with images. Received: 'empty', which has no file named as one"),
    ],
)
def test_paths_that_lead_nowhere(find, tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    found, (error,) = find(path)
    assert found == []
    assert message in error
    with pytest.raises(NothingFoundError):
        list(find_images([path], on_error=images_raise))


def images_raise(error):
    raise error


def test_links(find, tmp_path):
    (tmp_path / "x" / "y" / "up").symlink_to(tmp_path / "x")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "elsewhere").symlink_to(tmp_path / "x")
    (tmp_path / "v" / "loop.png").symlink_to("loop.png")
    (tmp_path / "v" / "nothing.png").symlink_to("nowhere")
    found, (error,) = find("v")
    assert [image.place for image in found] == [
        *("elsewhere/10.gif", "elsewhere/2.tif", "elsewhere/y/z.webp", "loop.png", "nothing.png")
    ]
    assert "'v/elsewhere/y/up' (it is a link to a folder above it)" in error
    for path, reason in (("v/loop.png", "Too many levels"), ("v/nothing.png", "is missing")):
        with pytest.raises(UserError, match=rf"{path}'.*{reason}"):
            read_image(path)


def test_links_in_a_circle(find, tmp_path):
    for name, other in (("p", "q"), ("q", "p")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "i.png").write_bytes(b"?")
        (tmp_path / name / "next").symlink_to(tmp_path / other)
    found, (error,) = find("p")
    assert names(found) == ["p/i.png", "p/next/i.png"]
    assert "'p/next/next' (it is a link to a folder above it)" in error


def test_a_folder_can_be_left_out(find, tmp_path):
    found, errors = find(".", leave_out=tmp_path / "x")
    assert (names(found), errors) == (["a.JPG", "b.png", "w/photo.HEIC"], [])


def test_a_deep_tree_and_a_file_in_it(tmp_path):
    path = tmp_path
    for _ in range(300):
        path = path / "d"
        path.mkdir()
    (path / "i.png").write_bytes(b"?")
    (found,) = find_images([tmp_path], on_error=images_raise)
    assert found.name == str(path / "i.png")


# --- standard input ------------------------------------------------------------------------------


class Stream:
    """Standard input, with or without the buffer that a file has."""

    def __init__(self, data, *, buffered):
        raw = io.BytesIO(data)
        self.buffer = io.BufferedReader(raw) if buffered else raw


def encoded(array, kind, **options):
    stream = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array))
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("buffered", [True, False])
def test_paths_from_standard_input(find, monkeypatch, buffered):
    text = b"b.png\r\n\n  \nx\nno such file.png\n*.JPG"
    monkeypatch.setattr(sys, "stdin", Stream(text, buffered=buffered))
    found, (error,) = find("-")
    assert names(found) == ["b.png", "x/10.gif", "x/2.tif", "x/y/z.webp", "a.JPG"]
    assert "'no such file.png', which is missing" in error


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_an_image_from_standard_input(find, monkeypatch, kind):
    bright = np.full((40, 30), 200, np.uint8)
    monkeypatch.setattr(sys, "stdin", Stream(encoded(bright, kind), buffered=True))
    (found,), errors = find("-")
    assert (found.name, found.place, errors) == ("-", "stdin", [])
    ((name, image),) = read_frames(found.source, name=found.name)
    assert name == "-"
    assert np.abs(image.astype(int) - 200).max() <= 2
    assert image.shape == (40, 30, 1)


def test_nothing_and_junk_from_standard_input(find, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stream(b"", buffered=True))
    assert find("-") == (
        [],
        ["Expected paths or an image on standard input. Received: nothing"],
    )
    monkeypatch.setattr(sys, "stdin", Stream(b"junk\0junk", buffered=True))
    (found,), _ = find("-")
    with pytest.raises(UserError, match=r"'-', which cannot be read as one \(it is something else"):
        list(read_frames(found.source, name=found.name))


# --- kinds of images -----------------------------------------------------------------------------

RAMP = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
COLORS = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=2)


def saved(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"])
def test_grey_formats(tmp_path, suffix):
    file = saved(tmp_path / f"a.{suffix}", RAMP, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(file)[..., 0], RAMP)
    three = read_image(file, channels=3)
    np.testing.assert_array_equal(three, np.repeat(RAMP[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg(tmp_path, suffix):
    file = saved(tmp_path / f"a.{suffix}", RAMP, quality=100)
    assert np.abs(read_image(file)[..., 0].astype(int) - RAMP).max() <= 3


def test_color(tmp_path):
    file = saved(tmp_path / "a.png", COLORS)
    np.testing.assert_array_equal(read_image(file), COLORS)
    assert read_image(file, channels=1).shape == (4, 5, 1)
    assert read_image(saved(tmp_path / "grey.png", RAMP, "RGB")).shape == (4, 5, 1)
    assert read_image(saved(tmp_path / "cmyk.jpg", COLORS, "CMYK")).shape == (4, 5, 3)
    with file.open("rb") as stream:
        np.testing.assert_array_equal(read_image(stream), COLORS)


def test_size_is_height_and_width_and_does_not_alias(tmp_path):
    stripes = np.tile(np.uint8([[0], [255]]), (32, 64))
    small = read_image(saved(tmp_path / "a.png", stripes), size=(8, 16))
    assert small.shape == (8, 16, 1)
    assert np.abs(small.astype(int) - 127.5).max() < 20
    assert read_image(saved(tmp_path / "c.png", COLORS), size=(3, 2)).shape == (3, 2, 3)


def test_transparency_is_put_on_what_sets_it_off(tmp_path):
    alpha = np.full((4, 5), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51
    bright = np.full((4, 5), 250, np.uint8)
    grey = saved(tmp_path / "la.png", np.stack([bright, alpha], axis=2))
    assert read_image(grey)[:, 0, 0].tolist() == [0, 50, 250, 250]
    color = saved(tmp_path / "rgba.png", np.dstack([COLORS, alpha]))
    np.testing.assert_array_equal(read_image(color)[2:], COLORS[2:])
    assert (read_image(color)[0] == 255).all(), "the colors are dark"
    palette = saved(tmp_path / "p.gif", RAMP, "P", transparency=0)
    assert read_image(palette).shape == (4, 5, 1)


def test_turns_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on the right side of the stored one
    file = saved(tmp_path / "a.png", RAMP, exif=exif)
    np.testing.assert_array_equal(read_image(file)[..., 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_scales_16_bits(tmp_path, suffix):
    file = saved(tmp_path / f"a.{suffix}", RAMP.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(file)[..., 0], RAMP)


def test_one_bit(tmp_path):
    file = saved(tmp_path / "a.png", RAMP > 100)
    np.testing.assert_array_equal(read_image(file)[..., 0], (RAMP > 100) * np.uint8(255))


def test_refuses_what_it_cannot_scale(tmp_path):
    with pytest.raises(UserError, match=r"floating-point numbers in .*a\.tif"):
        read_image(saved(tmp_path / "a.tif", RAMP.astype(np.float32)))
    with pytest.raises(UserError, match=r"0 to 22800000 in .*b\.tif"):
        read_image(saved(tmp_path / "b.tif", RAMP.astype(np.int32) * 100_000))
    with pytest.raises(UserError, match="channels=2"):
        read_image(saved(tmp_path / "c.png", RAMP), channels=2)


def test_names_a_file_that_is_none(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    whole = saved(tmp_path / "b.png", np.random.default_rng(0).integers(0, 256, (50, 50), "u1"))
    whole.write_bytes(whole.read_bytes()[:1000])
    for name in ("a.png", "b.png"):
        with pytest.raises(UserError, match=rf"{name}', which cannot be read"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="which is missing"):
        read_image(tmp_path / "c.png")
    with (
        (tmp_path / "a.png").open("rb") as stream,
        pytest.raises(UserError, match=r"a\.png"),
    ):
        read_image(stream)
    with pytest.raises(UserError, match="Received: the image that was sent, which cannot"):
        read_image(io.BytesIO(b"hello"))


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_refuses_a_decompression_bomb(tmp_path, side):
    file = tmp_path / "bomb.pgm"
    file.write_bytes(f"P5 {side} {side} 255\n".encode())
    with pytest.raises(UserError, match=r"at most 89478485.*bomb\.pgm"):
        read_image(file)


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("TIFF", {}), ("PNG", {})])
def test_frames(tmp_path, kind, options):
    stack = [Image.fromarray(np.full((4, 5), 60 * i, np.uint8)) for i in range(4)]
    file = tmp_path / "film"
    stack[0].save(file, kind, save_all=True, append_images=stack[1:], **options)
    found = dict(read_frames(file))
    assert list(found) == [f"{file}#{i}" for i in range(4)]
    assert [image[0, 0, 0] for image in found.values()] == [0, 60, 120, 180]
    assert read_image(file).max() == 0


def test_frames_of_an_animated_webp(tmp_path):
    stack = [Image.fromarray(np.full((4, 5), 60 * i, np.uint8)).convert("RGB") for i in range(4)]
    stack[0].save(tmp_path / "film", "WEBP", save_all=True, append_images=stack[1:], lossless=True)
    found = [image[0, 0].tolist() for _, image in read_frames(tmp_path / "film")]
    assert found == [[0], [60], [120], [180]]


def test_pages_of_several_sizes_and_modes(tmp_path):
    pages = [
        Image.fromarray(RAMP),
        Image.fromarray(COLORS).resize((9, 7)),
        Image.fromarray(RAMP > 100),
        Image.fromarray(RAMP.astype(np.uint16) * 257),
    ]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    shapes = [image.shape for _, image in read_frames(tmp_path / "a.tif")]
    assert shapes == [(4, 5, 1), (7, 9, 3), (4, 5, 1), (4, 5, 1)]


def test_frames_before_a_damaged_one_are_kept(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8)
    stack = [Image.fromarray(frame) for frame in noise]
    stack[0].save(tmp_path / "a.gif", save_all=True, append_images=stack[1:])
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) * 5 // 6])
    decoded = read_frames(tmp_path / "a.gif")
    assert [next(decoded)[0], next(decoded)[0]] == [f"{tmp_path}/a.gif#{i}" for i in (0, 1)]
    with pytest.raises(UserError, match=r"a\.gif#2', which cannot be read as one"):
        next(decoded)


def test_the_preview_in_a_photograph_is_no_frame(tmp_path):
    photograph, preview = Image.fromarray(COLORS), Image.fromarray(COLORS[:2, :2])
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    ((name, image),) = read_frames(tmp_path / "a.jpg")
    assert name == str(tmp_path / "a.jpg")
    assert image.shape == (4, 5, 3)


# --- what is more than enough --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")]
    + [("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
)
def test_a_large_image_is_averaged_down(kind, mode):
    image = np.kron(RAMP[:3], np.ones((80, 80), np.uint8))
    image = (
        Image.fromarray(image.astype(np.uint16) * 400)
        if mode == "I;16"
        else Image.fromarray(image).convert(mode)
    )
    data = io.BytesIO(encoded(image, kind))
    whole = read_image(data, channels=1)
    assert whole.shape == (240, 400, 1)
    ((_, small),) = read_frames(data, enough=(29, 40), channels=1)
    blocks = whole.reshape(30, 8, 50, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(small[..., 0], blocks, atol=1)
    ((_, same),) = read_frames(data, enough=(200, 40), channels=1)
    np.testing.assert_array_equal(same, whole)


def test_an_enormous_jpeg_is_shrunk_as_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    picture = np.kron(COLORS, np.ones((60, 60, 1), np.uint8))
    for name, options in (("base", {}), ("progressive", {"progressive": True})):
        Image.fromarray(picture).save(tmp_path / f"{name}.jpg", **options)
    ((_, image),) = read_frames(tmp_path / "base.jpg", enough=(25, 30))
    assert image.shape == (30, 38, 3)
    assert read_image(tmp_path / "base.jpg", size=(3, 3)).shape == (3, 3, 3)
    for file, enough in (("base", None), ("base", (200, 200)), ("progressive", (25, 30))):
        with pytest.raises(UserError, match="at most 10000 pixels"):
            list(read_frames(tmp_path / f"{file}.jpg", enough=enough))
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 70_000)
    with pytest.raises(UserError, match=r"Received: .*base\.jpg' \(300 x 240\)\. Make it smaller"):
        list(read_frames(tmp_path / "base.jpg", enough=(25, 30)))


def test_a_jpeg_in_several_scans_is_refused_like_a_progressive_one(monkeypatch):
    """Each color in a scan of its own: its whole picture has to be held before it is shrunk."""
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    data = encoded(np.kron(COLORS, np.ones((20, 20, 1), np.uint8)), "JPEG")
    at = data.index(b"\xff\xda\x00\x0c\x03")
    one = data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[at + 14 :]
    assert list(read_frames(io.BytesIO(data), enough=(20, 20)))
    with pytest.raises(UserError, match="at most 1000 pixels"):
        list(read_frames(io.BytesIO(one), enough=(20, 20)))


# --- what is too much, and what is damaged -------------------------------------------------------


def png(width, height, depth=8):
    """A PNG of nothing but a header and the beginning of black pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


BOMBS = {
    "20000x20000.png": png(20_000, 20_000),
    "10000x10000.png": png(10_000, 10_000, depth=1),
    "huge.png": png(2**31 - 1, 2**31 - 1),
    "wide.png": png(80_000_000, 1),
    "20000x20000.pgm": b"P5 20000 20000 255\n",
    "20000x20000.bmp": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 20_000, 20_000, 1, 24, *[0] * 6),
    "20000x20000.gif": b"GIF89a"
    + struct.pack("<HHBBB", 20_000, 20_000, 0, 0, 0)
    + b","
    + struct.pack("<HHHHB", 0, 0, 20_000, 20_000, 0)
    + b"\x02\x02\x4c\x01\x00;",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("enough", [None, (100, 100)])
def test_decompression_bombs_are_not_even_opened(tmp_path, name, enough):
    (tmp_path / name).write_bytes(BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError, match=r"at most 89478485 pixels, 1000000 a side.*Make it smaller"
    ):
        list(read_frames(tmp_path / name, enough=enough))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_an_animation_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS_OF_FRAMES", 50)
    stack = [Image.fromarray(np.full((4, 5), i, np.uint8)) for i in range(9)]
    stack[0].save(tmp_path / "a.gif", save_all=True, append_images=stack[1:])
    decoded = read_frames(tmp_path / "a.gif")
    assert len([next(decoded), next(decoded)]) == 2
    with pytest.raises(UserError, match=r"at most 50 pixels in all frames.*a\.gif#2'\. Split it"):
        next(decoded)


def test_files_that_are_too_long(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(RAMP, "PNG"))
    with (tmp_path / "a.png").open("r+b") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"at most 512 MiB. Received: .*a\.png', which is larger"):
        read_image(tmp_path / "a.png")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "pipe.png", "no regular file")):
        with pytest.raises(UserError, match=reason):
            read_image(path)
    with pytest.raises(UserError, match="no regular file"):
        read_image("/dev/zero")
    (tmp_path / "empty.png").touch()
    with pytest.raises(
        UserError, match=r"empty\.png', which cannot be read as one \(it is empty\)"
    ):
        read_image(tmp_path / "empty.png")


def test_a_forbidden_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"?")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"a\.png'.*\(Permission denied\)"):
        read_image(tmp_path / "a.png")


def test_one_pixel_of_every_kind():
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        assert read_image(io.BytesIO(encoded(np.uint8([[7]]), kind)), size=(3, 4)).shape == (
            3,
            4,
            1,
        )


def test_damaged_notes_of_a_camera_do_not_matter():
    for exif in (b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\x03\0\xff\xff\xff\xff"):
        image = read_image(io.BytesIO(encoded(COLORS, "JPEG", exif=exif)))
        assert image.shape == (4, 5, 3)


# --- two thousand damaged files ------------------------------------------------------------------


def seeds():
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    grey, rgb, rgba = (Image.fromarray(array) for array in (noise[..., 0], noise[..., :3], noise))
    exif = Image.Exif()
    exif[0x0112] = 6
    film = {"save_all": True, "append_images": [grey.rotate(90), grey.rotate(180)]}
    return [
        encoded(grey, "PNG"),
        encoded(rgba, "PNG", exif=exif),
        encoded(rgb.quantize(16), "PNG", transparency=b"\0\x80\xff"),
        encoded(noise[..., 0].astype(np.uint16) * 257, "PNG"),
        encoded(grey, "PNG", **film),
        encoded(rgb, "JPEG", exif=exif),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb, "WEBP"),
        encoded(rgba, "WEBP", lossless=True, exif=exif),
        encoded(grey.convert("RGB"), "WEBP", **film),
        encoded(grey, "GIF", **film),
        encoded(rgb, "TIFF", exif=exif),
        encoded(rgb, "TIFF", compression="tiff_lzw", **film),
        encoded(rgb, "TIFF", compression="jpeg"),
        encoded(rgb, "BMP"),
        encoded(rgb, "PPM"),
    ]


def mutate(data, others, rng):
    """One of seven kinds of damage."""
    kind, at = rng.integers(7), rng.integers(len(data))
    data = bytearray(data)
    if kind == 0:
        return data[:at]
    if kind == 1:
        data[at : at + rng.integers(1, 64)] = bytes(int(rng.integers(0, 64)))
    elif kind == 2:
        data[at:at] = rng.bytes(rng.integers(1, 40))
    elif kind == 3:
        other = others[rng.integers(len(others))]
        data[at:] = other[rng.integers(len(other)) :]
    elif kind == 4:
        for i in rng.integers(0, min(len(data), 64), 4):  # sizes and offsets are there
            data[i] = rng.choice([0, 1, 127, 128, 255])
    elif kind == 5:
        return bytes(len(data))
    else:
        for i in rng.integers(0, len(data), rng.integers(1, 20)):
            data[i] = rng.integers(256)
    return data


def test_two_thousand_damaged_files(tmp_path):
    """Each is read, or there is a reason: never a crash, a wait, a warning, or much memory."""
    rng = np.random.default_rng(3)
    originals, outcomes, slowest = seeds(), collections.Counter(), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(2000):
        file = tmp_path / f"0.{rng.choice(['png', 'jpg', 'gif', 'webp', 'tif', 'bmp', 'txt'])}"
        file.write_bytes(mutate(originals[number % len(originals)], originals, rng))
        begun = time.process_time()
        try:
            for _, image in read_frames(file, enough=None if number % 2 else (56, 56)):
                assert image.dtype == np.uint8
                assert image.ndim == 3
            outcomes["read"] += 1
        except UserError as error:
            assert "Expected" in str(error)
            assert "Received: " in str(error)
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        slowest = max(slowest, time.process_time() - begun)
    assert min(outcomes.values()) > 200
    assert slowest < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000
