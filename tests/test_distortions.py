"""Distortions: what is drawn, and what becomes of the images."""

import dataclasses

import numpy as np
import pytest
from scipy import interpolate, ndimage

from conftest import forgetting_determinism
from stn.tool import environment
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

    def normal(self, mean, deviation, size):
        return np.full(size, float(mean))


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
    ("name", "size"),
    [("none", 28), ("R", 28), ("RTS", 42), ("P", 28), ("E", 28), ("T", 60), ("TC", 60)],
)
def test_output_size_is_that_of_the_paper(name, size):
    assert DISTORTIONS[name].output_size((28, 28)) == (size, size)
    result = distort_all(noise(), DISTORTIONS[name], 0)
    assert result.shape == (8, size, size, 1)
    assert result.dtype == np.uint8


@pytest.mark.parametrize("name", ["R", "RTS", "P", "E", "TC"])
def test_not_square_and_in_color(name):
    images = noise(3, size=(10, 16), channels=3)
    images[..., 2] = 0
    result = distort_all(images, DISTORTIONS[name], 0)
    height, width = DISTORTIONS[name].output_size((10, 16))
    assert (height, width) == {"RTS": (15, 24), "TC": (21, 34)}.get(name, (10, 16))
    assert result.shape == (3, height, width, 3)
    assert result[..., 2].max() == 0
    assert result[..., :2].max(axis=(1, 2)).min() > 0


def test_no_distortion_returns_the_images_untouched():
    images = noise()
    assert distort_all(images, DISTORTIONS["none"], 0) is images


# --- randomness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["R", "RTS", "P", "E", "T", "TC"])
def test_seed_decides(name):
    images = noise()
    first, again, other = (distort_all(images, DISTORTIONS[name], s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_every_image_is_drawn_for_itself():
    images = np.repeat(noise(1), 8, axis=0)
    result = distort_all(images, DISTORTIONS["RTS"], 0)
    assert len(np.unique(result, axis=0)) == 8


@pytest.mark.parametrize("name", ["RTS", "P", "E"])
def test_result_does_not_depend_on_the_images_beside(name):
    images = noise()
    half = images.copy()
    half[4:] = 0
    whole, half = (distort_all(batch, DISTORTIONS[name], 3) for batch in (images, half))
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


def test_what_is_beyond_the_image_can_be_its_border():
    images = np.full((8, 9, 11, 3), 200, "uint8")
    rng = np.random.default_rng(0)
    assert (augmentation(2.0, padding="border")(images, rng) == 200).all()
    assert (augmentation(2.0)(images, rng) < 100).any()


# --- corners and control points ------------------------------------------------------------------

SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1.0]])


def moved_corners(params):
    """Where the corners of the shrunk image come out, from the parameters of P: `(n, 4, 2)`."""
    back = np.concatenate([params[:, 6:].astype("float64"), np.ones((len(params), 1))], axis=1)
    forward = np.linalg.inv(back.reshape(-1, 1, 3, 3))
    x, y, w = np.moveaxis((forward @ np.insert(SQUARE, 2, 1, axis=1)[:, :, None])[..., 0], -1, 0)
    return np.stack([x / w, y / w], -1)


@pytest.mark.parametrize("size", [(28, 28), (12, 20)])
@pytest.mark.parametrize(("name", "pixels"), [("P", 5), ("E", 1.5)])
def test_shifts_are_those_of_the_paper(name, pixels, size):
    """Shrunk to 0.75 to 1; then corners move by 5, control points by 1.5 of 28 pixels."""
    params = DISTORTIONS[name].params(4000, size, np.random.default_rng(0))
    assert params.dtype == np.float32
    angle, scale, shear, shift = decompose(params[:, :6], DISTORTIONS[name], size)
    np.testing.assert_allclose([angle, shear, *shift.T], 0, atol=1e-4)
    np.testing.assert_allclose([scale.min(), scale.max()], [0.75, 1], atol=0.001)
    assert scale.mean() == pytest.approx(0.875, abs=0.005)
    moves = moved_corners(params) - SQUARE if name == "P" else params[:, 6:].reshape(-1, 16, 2)
    moves = moves / 2 * 28  # in pixels of an image of 28
    np.testing.assert_allclose(moves.mean(axis=0), 0, atol=pixels / 15)
    np.testing.assert_allclose(moves.std(axis=0), pixels, rtol=0.05)
    flat = moves.reshape(len(moves), -1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1])).max() < 0.1


@pytest.mark.parametrize("name", ["P", "E"])
def test_without_shifts_it_is_the_scale_alone(name):
    images = noise(4, size=(12, 20))
    found = DISTORTIONS[name](images, Drawn(0.5))
    expected = Distortion(scale=(0.875, 0.875))(images, Drawn(0.5))
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
    still = Distortion(corners=5 / 28, control=1.5 / 28)
    np.testing.assert_array_equal(still(images, Drawn(0.5)), images)


def smooth_noise(size):
    images = ndimage.gaussian_filter(noise(3, size).astype(float), (0, 1.5, 1.5, 0))
    images = 255 * (images - images.min()) / np.ptp(images)
    return np.rint(images).astype("uint8")


def read(image, points):
    """An image of zeros outside, read at normalized points, `(n, 2)` `(x, y)`."""
    height, width = image.shape[:2]
    x, y = (points[:, 0] + 1) * width / 2 - 0.5, (points[:, 1] + 1) * height / 2 - 0.5
    padded = np.pad(image[..., 0].astype(float), 40)
    return ndimage.map_coordinates(padded, [y + 40, x + 40], order=1).reshape(height, width)


def centers(size):
    """The normalized pixel centers of an image, row by row."""
    y, x = (((np.arange(n) + 0.5) * 2 / n - 1) for n in size)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def test_corners_of_the_shrunk_image_come_out_where_they_are_moved():
    """Against the homography from the square to four points in closed form (Heckbert 1989)."""
    images, size = smooth_noise((24, 30)), (24, 30)
    params = DISTORTIONS["P"].params(3, size, np.random.default_rng(1))
    result = DISTORTIONS["P"](images, np.random.default_rng(1))
    for image, found, row, corners in zip(
        images, result, params, moved_corners(params), strict=True
    ):
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
        differences = np.array([[x1 - x2, x3 - x2], [y1 - y2, y3 - y2]])
        g, h = np.linalg.solve(differences, [x0 - x1 + x2 - x3, y0 - y1 + y2 - y3])
        forward = np.array(
            [
                [x1 - x0 + g * x1, x3 - x0 + h * x3, x0],
                [y1 - y0 + g * y1, y3 - y0 + h * y3, y0],
                [g, h, 1],
            ]
        )
        unit = np.linalg.solve(forward, np.insert(centers(size), 2, 1, axis=1).T)
        points = (2 * unit[:2] / unit[2] - 1).T * row[0]
        np.testing.assert_allclose(found[..., 0], read(image, points), atol=1)


def test_elastic_is_a_thin_plate_spline_of_the_shrunk_image():
    images, size = smooth_noise((24, 30)), (24, 30)
    params = DISTORTIONS["E"].params(3, size, np.random.default_rng(1))
    result = DISTORTIONS["E"](images, np.random.default_rng(1))
    control = np.stack(np.meshgrid(*[np.linspace(-1, 1, 4)] * 2), -1).reshape(-1, 2)
    for image, found, row in zip(images, result, params, strict=True):
        spline = interpolate.RBFInterpolator(
            control, control + row[6:].reshape(16, 2), kernel="thin_plate_spline"
        )
        np.testing.assert_allclose(
            found[..., 0], read(image, spline(centers(size)) * row[0]), atol=1
        )


def test_folded_corners_are_drawn_again():
    """What is left spans a quadrilateral at every corner; the others are as they were drawn."""
    wild = Distortion(corners=0.5)
    corners = moved_corners(wild.params(2000, (28, 28), np.random.default_rng(0)))
    before, after = corners - np.roll(corners, 1, axis=1), np.roll(corners, -1, axis=1) - corners
    areas = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    assert areas.min() > 0.1 * 4 - 1e-3
    rng = np.random.default_rng(0)
    rng.uniform(size=5 * 2000)  # angle, scale, shear and both shifts come first
    drawn = SQUARE + rng.normal(0, 1, (2000, 4, 2))
    kept = np.isclose(corners, drawn, atol=1e-3).all(axis=(1, 2))
    assert 0.1 < kept.mean() < 0.9
    result = distort_all(noise(64), wild, 0)
    np.testing.assert_array_equal(result, distort_all(noise(64), wild, 0))


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


def test_two_changes_in_one_go_are_those_one_after_the_other():
    """Turned about the middle by 45 degrees twice, read once: a quarter turn, not blurred twice."""
    images = noise()
    eighth = Distortion(angle=45)
    result = dataclasses.replace(eighth, first=eighth)(images, Drawn(1.0))
    expected = np.rot90(images, -1, axes=(1, 2))
    np.testing.assert_allclose(result.astype(int), expected.astype(int), atol=1)


def test_what_comes_first_is_applied_first():
    """Moved to the right by a quarter and then turned clockwise, what was left is on top."""
    images = np.zeros((1, 8, 8, 1), "uint8")
    images[0, :, :2] = 200
    moved = Distortion(shift=0.25)
    turned = dataclasses.replace(DISTORTIONS["R"], first=moved)
    assert not turned.idle and turned.families == ("affine", "affine")
    result = turned(images, Drawn(1.0))[0, :, :, 0]
    assert result.max(axis=1).tolist()[2:4] == [200, 200] and result[[0, 1, 4, 5, 6, 7]].max() == 0


@pytest.mark.parametrize("name", ["R", "E", "TC"])
def test_augmentation_before_a_distortion_bends_together_with_it(name):
    small, distortion = distortions.augmentation(1.0, elastic=2.0), DISTORTIONS[name]
    both = distortion.after(small)
    own = [family for family in distortion.families if family != "tps"]
    assert both.families == ("affine", *own, "tps")  # one spline, and it comes last
    params = both.params(2000, (28, 28), np.random.default_rng(0))
    bends, others = params[:, -32:], params[:, :-32]
    # E moves its points by 1.5 pixels of 28, in the square of 2 by 2; twice that beside it.
    expected = 2 * 1.5 / 28 * np.hypot(2, name == "E")
    np.testing.assert_allclose(bends.std(), expected, rtol=0.02)
    # What is not bent is as it was: the same draws of the same changes, one before the other.
    unbent = dataclasses.replace(small, control=0.0)
    straight = dataclasses.replace(distortion, first=unbent, control=0.0)
    np.testing.assert_array_equal(others, straight.params(2000, (28, 28), np.random.default_rng(0)))


def test_augmentation_before_no_distortion_is_augmentation():
    small = distortions.augmentation(0.5, elastic=0.5, padding="border")
    assert DISTORTIONS["none"].after(small) == small
    assert Distortion(apart=True).after(small) == dataclasses.replace(small, apart=True)


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


@pytest.mark.parametrize("name", ["R", "RTS", "P", "E", "T", "TC"])
def test_paper_goes_on_beyond_the_image(name):
    """Dark on light is drawn as light on dark is, turned over: no frame around the image."""
    rng = np.random.default_rng(0)
    images = np.zeros((8, 12, 12, 1), "uint8")
    images[:, 3:9, 3:9] = rng.integers(0, 256, (8, 6, 6, 1))
    dark = distort_all(images, DISTORTIONS[name].on([0.0]), 3)
    light = distort_all(255 - images, DISTORTIONS[name].on([255.0]), 3)
    np.testing.assert_allclose(light.astype(int), 255 - dark.astype(int), atol=1)
    assert DISTORTIONS[name].on([0.0]) == DISTORTIONS[name].on(None) == DISTORTIONS[name]


def test_nothing_to_do_on_white_paper_either():
    for background in ([255.0], [250.0, 240.0, 10.0], None):
        assert DISTORTIONS["none"].on(background).idle
    assert not DISTORTIONS["R"].on([255.0]).idle


def test_every_channel_has_its_own_paper():
    images = np.full((2, 8, 8, 3), (250, 240, 10), "uint8")
    result = distort_all(images, DISTORTIONS["RTS"].on([250.0, 240.0, 10.0]), 0)
    np.testing.assert_array_equal(result, np.full((2, 12, 12, 3), (250, 240, 10)))


def test_large_images_are_worked_on_in_smaller_parts(monkeypatch):
    images = noise(14)
    params = DISTORTIONS["R"].params(14, (28, 28), np.random.default_rng(0))
    whole = distortions.warp_images(images, params, (28, 28))
    monkeypatch.setattr(distortions, "_PIXELS", 4 * 28 * 28)
    assert distortions.at_once((28, 28)) == 4 and distortions.at_once((100, 100)) == 1
    calls = []
    original = distortions._compiled_warp

    def counted(*arguments):
        run = original(*arguments)
        return lambda images, params: calls.append(len(images)) or run(images, params)

    monkeypatch.setattr(distortions, "_compiled_warp", counted)
    np.testing.assert_array_equal(distortions.warp_images(images, params, (28, 28)), whole)
    assert calls == [4, 4, 4, 2]


def test_deterministic_without_a_warning():
    """Deterministic TensorFlow has no XLA, of which Keras warns, and warnings are errors here."""
    images = noise(4, size=(13, 9))  # a shape that nothing else has compiled
    with forgetting_determinism():
        environment.make_deterministic()
        first = distort_all(images, DISTORTIONS["R"], 0)
        distortions._compiled_warp.cache_clear()
        np.testing.assert_array_equal(distort_all(images, DISTORTIONS["R"], 0), first)
    distortions._compiled_warp.cache_clear()
