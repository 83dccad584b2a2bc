"""Distortions: what is drawn, and what becomes of the images."""

import numpy as np
import pytest

from stn.tool.data import distortions
from stn.tool.data.distortions import DISTORTIONS, Distortion, augmentation, distort_all


class Drawn:
    """A source of randomness that always draws the same place between low and high.

    Two places are those of x and y; angle, scale and shear are in the middle then.
    """

    def __init__(self, place):
        self.place = place

    def uniform(self, low, high, size):
        place = 0.5 if np.size(self.place) == 2 and np.size(size) == 1 else self.place
        return np.broadcast_to(low + (high - low) * np.asarray(place, float), size)


def noise(count=8, size=(28, 28), channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, channels), "uint8")


def decompose(params, distortion, size):
    """Angle in degrees, magnification, shear and shift in pixels, as `params` has them."""
    extent = np.array(size[::-1], float)
    canvas = np.array(distortion.output_size(size)[::-1], float)
    matrix = params.astype("float64").reshape(-1, 2, 3)
    forward = np.linalg.inv(matrix[:, :, :2] * extent[:, None] / canvas)
    shift = -(forward @ (matrix[:, :, 2] * extent / 2)[:, :, None])[:, :, 0]
    angle = np.arctan2(forward[:, 1, 0], forward[:, 0, 0])
    scale = np.hypot(forward[:, 0, 0], forward[:, 1, 0])
    across = np.cos(angle) * forward[:, 0, 1] + np.sin(angle) * forward[:, 1, 1]
    return np.rad2deg(angle), scale, across / scale, shift


# --- sizes and kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [("none", 28), ("R", 28), ("RTS", 42), ("T", 60), ("TC", 60)]
)
def test_output_size_is_that_of_the_paper(name, size):
    assert DISTORTIONS[name].output_size((28, 28)) == (size, size)
    result = distort_all(noise(), DISTORTIONS[name], 0)
    assert result.shape == (8, size, size, 1)
    assert result.dtype == np.uint8


@pytest.mark.parametrize("name", ["R", "RTS", "TC"])
def test_not_square_and_in_color(name):
    images = noise(3, size=(10, 16), channels=3)
    images[..., 2] = 0
    result = distort_all(images, DISTORTIONS[name], 0)
    height, width = DISTORTIONS[name].output_size((10, 16))
    assert (height, width) == {"R": (10, 16), "RTS": (15, 24), "TC": (21, 34)}[name]
    assert result.shape == (3, height, width, 3)
    assert result[..., 2].max() == 0
    assert result[..., :2].max(axis=(1, 2)).min() > 0


def test_no_distortion_returns_the_images_untouched():
    images = noise()
    assert distort_all(images, DISTORTIONS["none"], 0) is images


# --- randomness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["R", "RTS", "T", "TC"])
def test_seed_decides(name):
    images = noise()
    first, again, other = (distort_all(images, DISTORTIONS[name], s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_every_image_is_drawn_for_itself():
    images = np.repeat(noise(1), 8, axis=0)
    result = distort_all(images, DISTORTIONS["RTS"], 0)
    assert len(np.unique(result, axis=0)) == 8


def test_result_does_not_depend_on_the_images_beside():
    images = noise()
    half = images.copy()
    half[4:] = 0
    whole, half = (distort_all(batch, DISTORTIONS["RTS"], 3) for batch in (images, half))
    np.testing.assert_array_equal(whole[:4], half[:4])


def test_chunks_of_any_number_of_images():
    images = noise(14)
    result = distort_all(images, DISTORTIONS["R"], 0, chunk=8)
    rng = np.random.default_rng(0)
    parts = [DISTORTIONS["R"](images[start : start + 8], rng) for start in (0, 8)]
    np.testing.assert_array_equal(result, np.concatenate(parts))


@pytest.mark.parametrize("size", [(28, 28), (12, 20)])
@pytest.mark.parametrize("name", ["R", "RTS", "T", "TC"])
def test_ranges(name, size):
    distortion = DISTORTIONS[name]
    params = distortion.params(2000, size, np.random.default_rng(0))
    assert params.dtype == np.float32
    angle, scale, shear, shift = decompose(params, distortion, size)
    np.testing.assert_allclose(shear, 0, atol=1e-5)

    def check_range(values, low, high):
        room = 0.01 * (high - low) + 1e-4
        assert low - 1e-4 <= values.min() <= low + room
        assert high - room <= values.max() <= high + 1e-4

    check_range(angle, -distortion.angle, distortion.angle)
    check_range(scale, *distortion.scale)
    canvas = np.array(distortion.output_size(size)[::-1], float)
    room = (canvas - scale[:, None] * size[::-1]) / 2 if distortion.canvas > 1 else np.zeros(2)
    assert (np.abs(shift) <= room + 1e-3).all()
    if distortion.canvas > 1:
        check_range((shift / room)[:, 0], -1, 1)
        check_range((shift / room)[:, 1], -1, 1)
        assert abs(np.corrcoef(shift.T)[0, 1]) < 0.1


def test_augmentation_is_in_proportion():
    size = (20, 20)
    for strength in (0.5, 1.0, 2.0):
        distortion = augmentation(strength)
        params = distortion.params(1000, size, np.random.default_rng(0))
        angle, scale, shear, shift = decompose(params, distortion, size)
        for values, largest in (
            (angle, 10),
            (scale - 1, 0.1),
            (shear, 0.1),
            (shift[:, 0], 0.05 * size[1]),
            (shift[:, 1], 0.05 * size[0]),
        ):
            assert 0.97 * strength * largest < np.abs(values).max() <= 1.001 * strength * largest
    assert augmentation(1.0).output_size(size) == size


# --- pictures ------------------------------------------------------------------------------------


def test_identity_returns_the_image():
    images = noise(4, size=(11, 16), channels=3)
    for distortion in (DISTORTIONS["R"], augmentation(1.0)):
        result = distortion(images, Drawn(0.5))  # the middle of every range
        np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize(("place", "turns"), [(1.0, -1), (0.0, 1)])
def test_quarter_turn(place, turns):
    """A positive angle turns clockwise on the screen, where y points down."""
    images = noise()
    result = DISTORTIONS["R"](images, Drawn(place))
    expected = np.rot90(images, turns, axes=(1, 2))
    # Float32 puts the outermost points a hair outside.
    np.testing.assert_allclose(result.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0, (0.25, 0.75)])
def test_whole_pixel_shift(place):
    images = noise()
    result = DISTORTIONS["T"](images, Drawn(place))
    column, row = np.broadcast_to(np.asarray(place) * 32, 2).astype(int)
    expected = np.zeros((8, 60, 60, 1), int)
    expected[:, row : row + 28, column : column + 28] = images
    np.testing.assert_allclose(result.astype(int), expected, atol=1)


def test_twofold_magnification():
    images = np.zeros((1, 8, 8, 1), "uint8")
    images[0, 3:5, 3:5] = 200
    result = Distortion(scale=(2.0, 2.0))(images, Drawn(0.5))
    assert result[0, 2:6, 2:6].min() > 100
    assert result[0, [0, 7]].max() == 0
    assert result.sum() == pytest.approx(4 * images.sum(), rel=0.02)


def test_translated_image_stays_inside():
    images = np.full((8, 28, 28, 1), 200, "uint8")
    result = distort_all(images, DISTORTIONS["T"], 0)
    np.testing.assert_allclose(result.sum(axis=(1, 2, 3)), 200 * 28 * 28, rtol=0.005)


def test_clutter_is_added_to_the_translated_image():
    """Six 6x6 pieces of other images; the image itself loses nothing."""
    images = np.full((8, 28, 28, 1), 200, "uint8")
    images[:, :, 14:] = 0
    clean = distort_all(images, DISTORTIONS["T"], 5)
    cluttered = distort_all(images, DISTORTIONS["TC"], 5)
    assert (cluttered >= clean).all()
    added = (cluttered > clean).sum(axis=(1, 2, 3))
    assert added.mean() > 36
    assert added.max() <= 6 * 36
    assert distortions.DISTORTIONS["TC"].distractors == 6


def test_clutter_comes_from_the_other_images():
    images = np.zeros((8, 28, 28, 1), "uint8")
    images[0] = 255
    result = distort_all(images, DISTORTIONS["TC"], 0)
    assert (result[1:].sum(axis=(1, 2, 3)) > 0).any()
    assert set(np.unique(result[1:])) <= {0, 255}
