"""The drawn traffic signs."""

import time

import numpy as np
import pytest

from stn.tool.data import SOURCES, load, signs


@pytest.fixture(scope="module")
def few():
    return signs.read(splits=("train", "test"), seed=42, train_per_class=6, test_per_class=2)


def test_signs_are_what_the_table_says(few):
    source = SOURCES["signs"]
    assert len(few.class_names) == len(signs.SIGNS) == source.classes
    assert list(few.class_names) == sorted(signs.SIGNS)
    assert few.train.images.shape == (6 * source.classes, *source.image_shape)
    assert (few.train.images.dtype, few.train.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(few.train.labels, np.tile(np.arange(source.classes), 6))
    per_class = signs.read.__kwdefaults__
    assert source.train == source.classes * per_class["train_per_class"]
    assert source.test == source.classes * per_class["test_per_class"]


def test_signs_differ_within_a_class_and_between_splits(few):
    everything = np.concatenate([few.train.images, few.test.images])
    everything = everything.reshape(len(everything), -1)
    assert len(np.unique(everything, axis=0)) == len(everything)


def test_signs_do_not_depend_on_how_many_are_drawn(few):
    alone = signs.read(splits=("test",), seed=42, test_per_class=1)
    assert alone.train is None
    np.testing.assert_array_equal(alone.test.images, few.test.images[: len(signs.SIGNS)])
    other = signs.read(splits=("test",), seed=43, test_per_class=1)
    assert (other.test.images != alone.test.images).any(axis=(1, 2, 3)).all()


def test_signs_hang_in_all_sorts_of_light(few):
    images = few.train.images.astype("float64")
    brightness = images.mean(axis=(1, 2, 3))
    assert (brightness > 3).all()
    assert np.quantile(brightness, 0.1) < 60
    assert np.quantile(brightness, 0.9) > 120
    assert (images.std(axis=(1, 2, 3)) > 2).all()


def test_signs_are_seen_whole_and_in_perspective():
    rng = np.random.default_rng(0)
    corners = signs.PLATE * np.array([[0, 1, 1, 0], [0, 0, 1, 1]])
    leaning = []
    for _ in range(500):
        pull, _ = signs._view(rng)
        push = np.linalg.inv(np.reshape([*pull, 1], (3, 3)))
        x, y, depth = push @ [*corners, np.ones(4)]
        seen = np.stack([x, y]) / depth
        assert (depth * depth[0] > 0).all()  # none is behind the camera
        assert seen.min() > -1e-6
        assert seen.max() < signs.SIZE + 1e-6
        sides = np.hypot(*(np.roll(seen, -1, axis=1) - seen))
        leaning.append(max(sides[0] / sides[2], sides[2] / sides[0]))
        assert np.ptp(seen, axis=1).max() > 0.59 * signs.SIZE
    # A parallel projection would keep opposite sides equal.
    assert np.median(leaning) > 1.1


@pytest.mark.parametrize("pair", [("left", "right"), ("bend-left", "bend-right")])
def test_what_points_left_is_the_mirror_of_what_points_right(pair):
    left, right = (np.asarray(signs._draw_sign(*signs.SIGNS[name]), int) for name in pair)
    # Pillow draws lines a pixel wider on one side, before the drawing is shrunk.
    assert np.abs(left - right[:, ::-1]).mean() < 2
    assert np.abs(left - right).mean() > 5


def test_no_two_signs_are_alike():
    drawn = np.stack([np.asarray(signs._draw_sign(*sign), int) for sign in signs.SIGNS.values()])
    apart = [np.abs(drawn - one).mean(axis=(1, 2, 3)) for one in drawn]
    assert np.sort(apart, axis=1)[:, 1].min() > 1.5


def test_signs_in_another_size_and_in_grey(monkeypatch, few):
    monkeypatch.setattr(signs, "read", lambda splits, seed: few)
    dataset = load("signs", image_size=32, color="grey")
    assert dataset.test.images.shape == (2 * len(signs.SIGNS), 32, 32, 1)
    assert abs(dataset.test.images.mean() - few.test.images.mean()) < 8
    assert load("signs", image_size=48, color="rgb").train is few.train


def test_signs_are_drawn_quickly():
    signs.read(splits=("test",), seed=0, test_per_class=1)
    started = time.process_time()
    signs.read(splits=("test",), seed=0, test_per_class=5)
    assert time.process_time() - started < 1  # all of them in less than a minute, anywhere
