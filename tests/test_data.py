"""The sources of images: what they deliver, and what they say about what they cannot use."""

import gzip
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stn.tool.config import UserError
from stn.tool.data import (
    SOURCES,
    Split,
    carve,
    default_distortion,
    glyphs,
    idx,
    load,
    training_files,
)

# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["emnist/bycalss", "EMNIST/byclass", "emnist-byclass"])
def test_unknown_name_suggests_the_nearest(name):
    with pytest.raises(UserError, match=r"glyphs, signs, mnist.*Did you mean 'emnist/byclass'\?"):
        load(name)


def test_name_like_nothing_lists_the_sources():
    with pytest.raises(UserError, match=r"folder:PATH, tfds:NAME\. Received: 'qqq'$"):
        load("qqq")


@pytest.mark.parametrize("name", ["folder", "folder:", "tfds:", "tfds"])
def test_prefix_alone_is_refused(name):
    with pytest.raises(UserError, match=r"Append the (path|name)"):
        load(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"splits": ()},
        {"splits": ("val",)},
        {"color": "red"},
        {"image_size": 0},
        {"image_size": 2.5},
    ],
)
def test_wrong_option_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        load("glyphs", **wrong)


def test_default_distortion():
    assert [name for name in SOURCES if default_distortion(name) != "none"] == ["glyphs"]
    assert default_distortion("glyphs") == "RTS"
    assert default_distortion("folder:some/where") == "none"
    with pytest.raises(UserError):
        default_distortion("glyph")


def test_listing_the_sources_loads_no_backend_and_no_downloader():
    code = (
        "import sys, stn.tool.data; "
        "print(*{'keras', 'tensorflow', 'PIL', 'pooch', 'requests'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- splits --------------------------------------------------------------------------------------


def numbered(labels):
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, np.asarray(labels, np.int32))


def test_carve_gives_every_class_its_share():
    split = numbered(np.random.default_rng(0).permutation([0] * 100 + [1] * 50 + [2] * 10))
    train, held = carve(split, 0.2, seed=3)
    assert np.bincount(held.labels).tolist() == [20, 10, 2]
    both = np.concatenate([train.images, held.images]).ravel()
    assert sorted(both) == list(range(160))
    assert len(train) == 128
    for part in (train, held):
        order = part.images.ravel().astype(int)
        assert (np.diff(order) > 0).all()
        np.testing.assert_array_equal(part.labels, split.labels[order])


def test_carve_repeats_itself_and_depends_on_the_seed():
    split = numbered([0, 1] * 50)
    held = [carve(split, 0.1, seed)[1].images.ravel().tolist() for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5, 0.77, 0.99])
def test_carve_leaves_every_class_in_train(fraction):
    labels = [0] + [1] * 2 + [2] * 3 + [3] * 10 + [5] * 40
    train, held = carve(numbered(labels), fraction, seed=0)
    assert set(train.labels) == {0, 1, 2, 3, 5}
    assert len(held) == min(max(1, round(fraction * 56)), 51)


def test_carve_spreads_what_is_left_by_rounding_over_the_classes():
    _, held = carve(numbered(np.repeat(range(10), 4)), 0.2, seed=0)
    assert len(held) == 8
    assert np.bincount(held.labels).max() == 1


def test_carve_extremes():
    train, held = carve(numbered([0, 1]), 0, seed=0)
    assert (len(train), len(held)) == (2, 0)
    for fraction in (1, -0.1, float("nan")):
        with pytest.raises(UserError, match="fraction"):
            carve(numbered([0, 0]), fraction, seed=0)
    with pytest.raises(UserError, match="class of two or more"):
        carve(numbered([0, 1]), 0.5, seed=0)


# --- glyphs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few():
    return glyphs.read(splits=("train", "test"), seed=42, train_per_class=6, test_per_class=2)


def test_glyphs_are_what_the_table_says(few):
    assert few.class_names == tuple(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    )
    assert few.train.images.shape == (6 * 62, 28, 28, 1)
    assert (few.train.images.dtype, few.train.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(few.train.labels, np.tile(np.arange(62), 6))
    assert len(few.test) == 2 * 62


def test_glyphs_are_bright_ink_that_stays_inside(few):
    images = few.train.images[..., 0]
    assert (images.max(axis=(1, 2)) > 150).all()
    assert 15 < images.mean() < 60
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert (border.max(axis=1) > 128).mean() < 0.03
    # Antialiased: neither all black and white nor blurred throughout.
    inked = images[images > 0]
    assert 0.2 < ((inked > 30) & (inked < 225)).mean() < 0.8


def test_glyphs_are_upright(few):
    mean = {
        name: few.train.images[few.train.labels == i].mean(axis=0)[..., 0]
        for i, name in enumerate(few.class_names)
    }
    assert mean["L"][17:22].sum() > 1.3 * mean["L"][4:9].sum()  # its foot is at the bottom
    assert mean["L"][:, :14].sum() > mean["L"][:, 14:].sum()  # and its stem on the left
    assert mean["T"][3:8].sum() > 1.3 * mean["T"][16:21].sum()
    assert mean["p"][22:].sum() > 10 * mean["P"][22:].sum()  # only "p" goes below the line


def test_glyphs_differ_within_a_class_and_between_splits(few):
    everything = np.concatenate([few.train.images, few.test.images]).reshape(8 * 62, -1)
    assert len(np.unique(everything, axis=0)) == len(everything)


def test_glyphs_do_not_depend_on_how_many_are_drawn(few):
    alone = glyphs.read(splits=("test",), seed=42, test_per_class=1)
    assert alone.train is None
    np.testing.assert_array_equal(alone.test.images, few.test.images[:62])
    other = glyphs.read(splits=("test",), seed=43, test_per_class=1)
    assert (other.test.images != alone.test.images).any(axis=(1, 2, 3)).all()


def test_glyphs_in_another_size_and_in_rgb(monkeypatch, few):
    monkeypatch.setattr(glyphs, "read", lambda splits, seed: few)
    dataset = load("glyphs", image_size=20, color="rgb")
    assert dataset.test.images.shape == (124, 20, 20, 3)
    assert (dataset.test.images[..., :1] == dataset.test.images).all()
    assert abs(dataset.test.images.mean() - few.test.images.mean()) < 1


# --- idx -----------------------------------------------------------------------------------------


def idx_bytes(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


ARROW = np.random.default_rng(5).integers(0, 256, (6, 4, 5), np.uint8)  # not square on purpose
DIGITS = [0, 1, 2, 9, 0, 1]


def files_for(name, split="train", images=ARROW, labels=DIGITS):
    stored = images if name == "mnist" else images.transpose(0, 2, 1)
    parts = idx_bytes(stored), idx_bytes(labels)
    return dict(zip(idx.stems(name, split), parts, strict=True))


def write(folder, files, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix == ".gz" else data)
    return folder


def train_only(name, folder):
    return load(name, data_dir=folder, splits=("train",))


@pytest.mark.parametrize("name", ["mnist", "emnist/byclass"])
@pytest.mark.parametrize("form", ["gz", "plain", "dotted", "sub-folder"])
def test_idx_files_are_found_and_upright(tmp_path, name, form):
    files = files_for(name)
    if form == "gz":
        write(tmp_path, files, ".gz")
    elif form == "sub-folder":
        write(tmp_path / "gzip", files, ".gz")
    else:
        dotted = {stem.replace("-idx", ".idx"): data for stem, data in files.items()}
        write(tmp_path, dotted if form == "dotted" else files)
    dataset = train_only(name, tmp_path)
    assert dataset.test is None
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.images[..., 0], ARROW)
    assert dataset.train.labels.tolist() == DIGITS


@pytest.mark.parametrize("archive", ["gzip.zip", "emnist.zip", "EMNIST.zip"])
def test_idx_inside_the_official_zip(tmp_path, archive):
    with zipfile.ZipFile(tmp_path / archive, "w") as opened:
        opened.writestr("gzip/emnist-readme.txt", "hello")
        for stem, data in files_for("emnist/digits", "test").items():
            opened.writestr(f"gzip/{stem}.gz", gzip.compress(data))
    before = sorted(tmp_path.rglob("*"))
    dataset = load("emnist/digits", data_dir=tmp_path, splits=("test",))
    np.testing.assert_array_equal(dataset.test.images[..., 0], ARROW)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=r"emnist-digits-train-images-idx3-ubyte.*gzip\.zip"):
        load("emnist/digits", data_dir=tmp_path, splits=("train",))


def test_idx_is_read_in_chunks_without_a_second_copy(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (30_000, 28, 28), np.uint8)
    write(tmp_path, files_for("emnist/digits", "test", images, np.arange(30_000) % 10))
    tracemalloc.start()
    dataset = load("emnist/digits", data_dir=tmp_path, splits=("test",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(dataset.test.images[..., 0], images)
    assert peak < images.nbytes * 1.5


@pytest.mark.parametrize(
    ("name", "stored", "classes"),
    [
        ("emnist/byclass", [0, 61], ["0", "z"]),
        ("emnist/bymerge", [35, 36, 46], ["Z", "a", "t"]),
        ("emnist/balanced", [38, 39, 40], ["d", "e", "f"]),
        ("emnist/letters", [1, 26], ["A", "Z"]),
        ("emnist/digits", [0, 9], ["0", "9"]),
        ("emnist/mnist", [0, 9], ["0", "9"]),
        ("mnist", [0, 9], ["0", "9"]),
    ],
)
def test_label_map(tmp_path, name, stored, classes):
    write(tmp_path, files_for(name, images=ARROW[: len(stored)], labels=stored))
    dataset = train_only(name, tmp_path)
    assert [dataset.class_names[label] for label in dataset.train.labels] == classes
    assert len(dataset.class_names) == SOURCES[name].classes


@pytest.mark.parametrize(
    ("name", "label"),
    [("emnist/byclass", 62), ("emnist/balanced", 47), ("emnist/letters", 0), ("mnist", 10)],
)
def test_label_out_of_range(tmp_path, name, label):
    write(tmp_path, files_for(name, labels=[1, 2, 3, label, 1, 2]))
    expected = rf"Received: {label} as label number 3 of .*labels-idx1-ubyte"
    with pytest.raises(UserError, match=expected):
        train_only(name, tmp_path)


def test_missing_folder_and_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*No such file"):
        train_only("mnist", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        train_only("mnist", tmp_path / "file")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz, train-images\.idx3-ubyte"):
        train_only("mnist", tmp_path)


STEMS = idx.stems("mnist", "train")
GOOD = files_for("mnist")
IMAGES_DATA, LABELS_DATA = GOOD[STEMS[0]], GOOD[STEMS[1]]
PACKED = gzip.compress(IMAGES_DATA, mtime=0)  # it is part of names of tests
DAMAGED = PACKED[:40] + bytes(byte ^ 255 for byte in PACKED[40:60]) + PACKED[60:]
WRONG_SUM = PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:]


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        ("", LABELS_DATA, "which holds labels: it has the wrong name"),
        ("", b"", "which is empty"),
        ("", b"\0\0", "ends too early"),
        ("", b"P5 28 28", "starts with 50 35 20 32"),
        ("", b"\0\0\x0b\x03" + bytes(20), "starts with 00 00 0b 03"),
        ("", IMAGES_DATA[:10], "ends too early"),
        ("", IMAGES_DATA[:-1], "cannot hold"),
        ("", IMAGES_DATA + b"\0", "Received: more than that"),
        ("", struct.pack(">4I", 0x803, 0, 28, 28), "at least one"),
        ("", struct.pack(">4I", 0x803, 6, 0, 28), "at least one"),
        ("", PACKED, r"append \.gz to its name"),
        (".gz", IMAGES_DATA, "a gzip file"),
        (".gz", b"", "which is empty"),
        (".gz", PACKED[:60], "ends too early"),
        (".gz", PACKED[:-3], "ends too early"),
        (".gz", DAMAGED, "(undamaged|gzip) file"),
        (".gz", WRONG_SUM, "CRC check failed"),
        (".gz", PACKED + b"more", "a gzip file"),
        (".gz", gzip.compress(LABELS_DATA, mtime=0), "which holds labels"),
        (".gz", gzip.compress(IMAGES_DATA[:-1], mtime=0), "119 in .*cut off"),
        (".gz", gzip.compress(IMAGES_DATA + b"\0", mtime=0), "more than that"),
    ],
)
def test_damaged_images(tmp_path, suffix, data, message):
    (tmp_path / (STEMS[0] + suffix)).write_bytes(data)
    (tmp_path / STEMS[1]).write_bytes(LABELS_DATA)
    with pytest.raises(UserError, match=rf"(?s)^Expected .*{message}") as caught:
        train_only("mnist", tmp_path)
    assert str(tmp_path / STEMS[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES_DATA, "which holds images"),
        (LABELS_DATA[:-1], "cannot hold"),
        (idx_bytes([0, 1, 2]), "6 images in .* and 3 labels in"),
        (idx_bytes([4] * 6), "only label 4"),
    ],
)
def test_wrong_labels(tmp_path, data, message):
    (tmp_path / STEMS[0]).write_bytes(IMAGES_DATA)
    (tmp_path / STEMS[1]).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        train_only("mnist", tmp_path)
    assert str(tmp_path / STEMS[1]) in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(6, 65535, 65535), (6, 2**32 - 1, 2**32 - 1), (6, 30_000, 1000)])
def test_hostile_header_allocates_nothing(tmp_path, suffix, shape):
    write(tmp_path, GOOD)
    (tmp_path / STEMS[0]).unlink()
    write(tmp_path, {STEMS[0]: struct.pack(">4I", 0x803, *shape) + bytes(100)}, suffix)
    tracemalloc.start()
    with pytest.raises(UserError, match="cannot hold"):
        train_only("mnist", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_damaged_zip(tmp_path):
    archive = tmp_path / "gzip.zip"
    archive.write_bytes(b"PK\3\4 not a zip")
    with pytest.raises(UserError, match=r"whole zip file.*gzip\.zip"):
        train_only("emnist/digits", tmp_path)
    with zipfile.ZipFile(archive, "w") as opened:
        for stem, data in files_for("emnist/digits").items():
            opened.writestr(f"gzip/{stem}.gz", gzip.compress(data))
    data = bytearray(archive.read_bytes())
    data[70:80] = bytes(10)
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"gzip\.zip / gzip/emnist-digits-train-images"):
        train_only("emnist/digits", tmp_path)


REAL = os.environ.get("STN_TEST_DATA")


@pytest.mark.skipif(not REAL, reason="set STN_TEST_DATA to a folder with emnist/ and mnist/")
def test_real_digits_of_both_sets_look_alike():
    ours = load("emnist/byclass", data_dir=REAL, splits=("test",)).test
    theirs = load("mnist", data_dir=REAL, splits=("test",)).test
    assert ours.images.shape[1:] == theirs.images.shape[1:] == (28, 28, 1)
    assert ours.labels.max() == 61
    for digit in range(10):
        means = [part.images[part.labels == digit].mean(axis=0)[..., 0] for part in (ours, theirs)]
        upright = np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1]
        transposed = np.corrcoef(means[0].T.ravel(), means[1].ravel())[0, 1]
        # These two look much the same when transposed.
        assert digit in (0, 8) or upright > transposed + 0.1, digit


# --- folders -------------------------------------------------------------------------------------


COLORS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)


def saved(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def picture(number, size=(4, 5)):
    return np.full(size, number, np.uint8)


def make_classes(folder, counts, first=0):
    """Images that hold one number each, counted from `first`."""
    for name, count in counts.items():
        for _ in range(count):
            saved(folder / name / f"{first:03d}.png", picture(first))
            first += 1
    return folder


def content(split):
    return split.images[:, 0, 0, 0].tolist()


def test_folder_without_splits_gets_a_fifth_as_test(tmp_path):
    make_classes(tmp_path, {"b": 10, "a": 20})
    (tmp_path / "README.md").write_text("not a class")
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "b" / "Desktop.ini").write_bytes(b"x")
    (tmp_path / "b" / "@eaDir").mkdir()
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "b" / "GT-00001.csv").write_text("a table of what is in the images")
    dataset = load(f"folder:{tmp_path}")
    assert dataset.class_names == ("a", "b")
    assert dataset.train.images.shape == (24, 4, 5, 1)
    assert np.bincount(dataset.test.labels).tolist() == [4, 2]
    assert dataset.train.labels.dtype == np.int32
    for split in (dataset.train, dataset.test):
        assert [int(number < 10) for number in content(split)] == split.labels.tolist()
    assert sorted(content(dataset.train) + content(dataset.test)) == list(range(30))

    again = load(f"folder:{tmp_path}", splits=("test",))
    assert again.train is None
    assert content(again.test) == content(dataset.test)
    assert content(load(f"folder:{tmp_path}", seed=1).test) != content(dataset.test)


def test_folder_with_its_own_splits(tmp_path):
    make_classes(tmp_path / "train", {"x": 3, "y": 2, "z": 1})
    make_classes(tmp_path / "test", {"x": 1, "z": 2}, first=50)
    make_classes(tmp_path / "valid", {"x": 1}, first=90)
    dataset = load(f"folder:{tmp_path}")
    assert dataset.class_names == ("x", "y", "z")
    assert content(dataset.train) == [0, 1, 2, 3, 4, 5]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert content(dataset.test) == [50, 51, 52]
    assert dataset.test.labels.tolist() == [0, 2, 2]


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("Training", "Testing")])
def test_splits_as_public_data_sets_call_them(train, test, tmp_path):
    make_classes(tmp_path / train, {"00000": 3, "00001": 2})
    make_classes(tmp_path / test, {"00001": 2}, first=50)
    (tmp_path / test / "00000").mkdir()  # no image of this class: nothing but its table
    (tmp_path / test / "00000" / "GT-00000.csv").write_text("")
    dataset = load(f"folder:{tmp_path}")
    assert (content(dataset.train), content(dataset.test)) == ([0, 1, 2, 3, 4], [50, 51])
    assert dataset.test.labels.tolist() == [1, 1]
    (tmp_path / "train").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=rf"one folder of train images.*{train}' and .*train'"):
        load(f"folder:{tmp_path}")


def test_test_images_that_are_not_sorted_are_not_passed_over(tmp_path):
    make_classes(tmp_path / "Train", {"0": 5, "1": 5})
    saved(tmp_path / "Test" / "00000.png", picture(1))
    for splits in (("train",), ("test",)):
        with pytest.raises(UserError, match=r"each class in '.*Test'.*none\. Sort.*20%.*Train'"):
            load(f"folder:{tmp_path}", splits=splits)


def test_classes_that_are_further_down(tmp_path):
    make_classes(tmp_path / "Final" / "Images", {"0": 5, "1": 5})
    with pytest.raises(UserError, match=r"with Images.*give folder:.*Final.Images$"):
        load(f"folder:{tmp_path / 'Final'}")
    make_classes(tmp_path / "Meta", {"0": 5, "1": 5})
    with pytest.raises(UserError, match=r"Images' \(a folder\).*give folder:.*Final\. Otherwise"):
        load(f"folder:{tmp_path}")


def test_folder_reads_only_the_split_asked_for(tmp_path):
    make_classes(tmp_path / "train", {"x": 1, "y": 1})
    make_classes(tmp_path / "test", {"x": 1, "y": 1}, first=50)
    good, broken = tmp_path / "train" / "x" / "000.png", tmp_path / "test" / "x" / "050.png"
    broken.write_bytes(b"broken")
    assert content(load(f"folder:{tmp_path}", splits=("train",)).train) == [0, 1]
    broken.write_bytes(good.read_bytes())
    good.write_bytes(b"broken")
    assert content(load(f"folder:{tmp_path}", splits=("test",)).test) == [0, 51]


def test_folder_with_test_images_only(tmp_path):
    make_classes(tmp_path / "test", {"x": 1, "y": 1}, first=50)
    dataset = load(f"folder:{tmp_path}", splits=("test",))
    assert (dataset.class_names, content(dataset.test)) == (("x", "y"), [50, 51])
    with pytest.raises(UserError, match="Expected a folder train"):
        load(f"folder:{tmp_path}")


def test_folder_with_train_images_only_draws_the_test_from_them(tmp_path):
    make_classes(tmp_path / "train", {"x": 5, "y": 5})
    dataset = load(f"folder:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (8, 2)


def test_folder_whose_classes_are_called_train_and_bus(tmp_path):
    make_classes(tmp_path, {"train": 5, "bus": 5})
    assert load(f"folder:{tmp_path}").class_names == ("bus", "train")


def test_folder_color(tmp_path):
    make_classes(tmp_path / "train", {"x": 2, "y": 2})
    make_classes(tmp_path / "test", {"x": 2, "y": 2}, first=50)
    assert load(f"folder:{tmp_path}").train.images.shape == (4, 4, 5, 1)
    saved(tmp_path / "test" / "x" / "051.png", COLORS)
    dataset = load(f"folder:{tmp_path}")
    assert dataset.train.images.shape == dataset.test.images.shape == (4, 4, 5, 3)
    np.testing.assert_array_equal(dataset.test.images[1], COLORS)
    assert (dataset.test.images[0] == 50).all()
    assert load(f"folder:{tmp_path}", color="grey").test.images.shape[3] == 1
    assert load(f"folder:{tmp_path}", color="rgb", splits=("train",)).train.images.shape[3] == 3


def test_folder_with_one_image_more_or_less_keeps_its_test_images(tmp_path):
    make_classes(tmp_path, {"a": 52, "b": 51})
    before = set(content(load(f"folder:{tmp_path}", splits=("test",)).test))
    files = training_files(f"folder:{tmp_path}", seed=42)
    (tmp_path / "a" / "000.png").unlink()
    saved(tmp_path / "b" / "zzz.png", picture(120))
    after = set(content(load(f"folder:{tmp_path}", splits=("test",)).test))
    assert len(before ^ after) <= 4  # one image of each class in place of another
    assert training_files(f"folder:{tmp_path}", seed=42) != files
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    moved = load(f"folder:{tmp_path.with_name('moved')}", splits=("test",)).test
    assert set(content(moved)) == after


def test_where_no_test_image_is_drawn_the_files_do_not_matter(tmp_path):
    make_classes(tmp_path / "train", {"a": 3, "b": 3})
    make_classes(tmp_path / "test", {"a": 3, "b": 3})
    assert training_files(f"folder:{tmp_path}", seed=42) is None
    assert training_files("glyphs", seed=42) is None


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are UTF-8 there")
def test_classes_that_cannot_be_written_down(tmp_path):
    make_classes(tmp_path, {"a": 3, "b\udcff": 3})
    with pytest.raises(UserError, match="names of classes in UTF-8"):
        load(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="Expected the path of a folder"):
        load(f"folder:{tmp_path}/b\udcff")


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
@pytest.mark.parametrize("name", ["b\nc", "b\tc"])
def test_classes_that_break_a_line(name, tmp_path):
    make_classes(tmp_path, {"a": 3, name: 3})
    with pytest.raises(UserError, match="names of classes on one line"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["glyphs", "signs", "folder:somewhere"])
@pytest.mark.parametrize("option", ["data_dir", "mirror"])
def test_places_that_are_not_looked_at(name, option):
    with pytest.raises(UserError, match=f"^Expected no {option} with .*Received: {option}='there'"):
        load(name, **{option: "there"})


@pytest.mark.parametrize("name", ["folder:~nobody-of-this-name/x", "mnist"])
def test_the_home_of_nobody(name):
    place = {"data_dir": "~nobody-of-this-name/x"} if name == "mnist" else {}
    with pytest.raises(UserError, match="Expected the path of a folder"):
        load(name, **place)


def test_folder_of_several_sizes_needs_image_size(tmp_path):
    make_classes(tmp_path, {"x": 3, "y": 3})
    saved(tmp_path / "y" / "004.png", picture(4, (7, 9)))
    with pytest.raises(UserError, match=r"000\.png of 5x4 and .*004\.png of 9x7.*--image-size"):
        load(f"folder:{tmp_path}", splits=("train", "test"), seed=0)
    dataset = load(f"folder:{tmp_path}", image_size=6)
    assert dataset.train.images.shape[1:] == (6, 6, 1)
    assert sorted(content(dataset.train) + content(dataset.test)) == list(range(6))


def break_with_text(root):
    (root / "y" / "notes.txt").write_text("x")
    return r"notes\.txt"


def break_with_many(root):
    for i in range(7):
        (root / "y" / f"{i}.json").write_text("x")
    return r"0\.json'.*4\.json' and 2 more\. Remove them"


def break_with_dead_link(root):
    (root / "y" / "gone.png").symlink_to(root / "nothing")
    return r"gone\.png' \(a link to nothing\)\. Remove it or move it elsewhere"


def break_with_damage(root):
    (root / "y" / "003.png").write_bytes(b"x")
    return r"003\.png', which cannot be read"


def break_with_subfolder(root):
    (root / "y" / "deeper.png").mkdir()
    return r"deeper\.png"


def break_with_empty_class(root):
    (root / "w").mkdir()
    (root / "w" / ".keep").write_text("")
    return r"w', which is empty"


def break_with_one_class(root):
    (root / "y").rename(root / ".y")
    return "two or more classes.* with x"


@pytest.mark.parametrize(
    "damage",
    [
        break_with_text,
        break_with_many,
        break_with_dead_link,
        break_with_damage,
        break_with_subfolder,
        break_with_empty_class,
        break_with_one_class,
    ],
)
def test_unusable_folder(tmp_path, damage):
    message = damage(make_classes(tmp_path, {"x": 3, "y": 3}))
    with pytest.raises(UserError, match=message):
        load(f"folder:{tmp_path}")


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*No such file"):
        load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="with none"):
        load(f"folder:{tmp_path}")


def test_test_class_that_was_never_trained(tmp_path):
    make_classes(tmp_path / "train", {"x": 1, "y": 1})
    make_classes(tmp_path / "test", {"x": 1, "dog": 1})
    with pytest.raises(UserError, match=r"test' with dog besides"):
        load(f"folder:{tmp_path}", splits=("test",))


def test_folder_with_nothing_to_spare_for_a_test(tmp_path):
    make_classes(tmp_path, {"x": 1, "y": 1})
    with pytest.raises(UserError, match="class of two or more"):
        load(f"folder:{tmp_path}")


# --- TensorFlow Datasets -------------------------------------------------------------------------


def test_tfds_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[tfds\]"'):
        load("tfds:kmnist")


TINY = '''
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, tensorflow_datasets as tfds

class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Images that hold one number each."""
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({
                "id": tfds.features.Scalar(np.int64),
                "image": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=["square", "disk"]),
            }),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            yield i, {"id": i, "image": np.full((4, 5, 1), i, np.uint8), "label": i // 10}

folder = sys.argv[1]
TinyShapes(data_dir=folder).download_and_prepare()

from stn.tool.config import UserError
from stn.tool.data import load

dataset = load("tfds:tiny_shapes", data_dir=folder)
assert dataset.class_names == ("square", "disk")
assert dataset.train.images.shape == (16, 4, 5, 1), dataset.train.images.shape
assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int32
assert np.bincount(dataset.test.labels).tolist() == [2, 2]
for split in (dataset.train, dataset.test):
    assert (split.images[:, 0, 0, 0] // 10 == split.labels).all()
numbers = np.concatenate([dataset.train.images, dataset.test.images])[:, 0, 0, 0]
assert sorted(numbers) == list(range(20))
alone = load("tfds:tiny_shapes", data_dir=folder, splits=("test",), color="rgb", image_size=6)
assert alone.train is None and alone.test.images.shape == (4, 6, 6, 3)
assert (alone.test.images[:, 0, 0, 0] == dataset.test.images[:, 0, 0, 0]).all()
try:
    load("tfds:no_such_set", data_dir=folder)
except UserError as error:
    assert "tfds:no_such_set" in str(error), error
    print("fine")
'''


def test_tfds(tmp_path):
    import importlib.util

    if not importlib.util.find_spec("tensorflow_datasets"):
        pytest.skip("tensorflow_datasets is not installed")
    # A process of its own: it imports TensorFlow, which warns in ways that are not ours.
    script = tmp_path / "tiny_shapes.py"
    script.write_text(TINY)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, str(Path.cwd())])),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.strip().endswith("fine"), done.stderr
