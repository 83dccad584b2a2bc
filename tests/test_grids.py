"""The corner conventions: where pixels are in normalized coordinates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stn import grids

SIZES = st.integers(1, 500)


@pytest.mark.parametrize(
    ("size", "align_corners", "first", "last"),
    [
        (4, False, -0.75, 0.75),  # -1 and 1 are the outer edges
        (4, True, -1.0, 1.0),  # -1 and 1 are the centers of the corner pixels
        (5, False, -0.8, 0.8),
        (2, True, -1.0, 1.0),
        (1, False, 0.0, 0.0),
        (1, True, 0.0, 0.0),
    ],
)
def test_corner_pixels(size, align_corners, first, last):
    ends = grids.to_normalized(np.array([0.0, size - 1.0]), size, align_corners)
    np.testing.assert_allclose(ends, [first, last], rtol=0, atol=1e-15)
    pixels = grids.to_pixel(np.array([first, last]), size, align_corners)
    np.testing.assert_allclose(pixels, [0, size - 1], rtol=0, atol=1e-15)


@settings(deadline=None)  # a busy machine is not a fault of ours
@given(size=SIZES, align_corners=st.booleans(), pixel=st.floats(-1000, 1000))
def test_conversions_are_inverse(size, align_corners, pixel):
    there = grids.to_normalized(np.float64(pixel), size, align_corners)
    back = grids.to_pixel(there, size, align_corners)
    # One pixel with its corners aligned has no extent: every point is its center.
    expected = 0 if size == 1 and align_corners else pixel
    np.testing.assert_allclose(back, expected, rtol=1e-12, atol=1e-12 * size)


@settings(deadline=None)  # a busy machine is not a fault of ours
@given(height=SIZES, width=SIZES, align_corners=st.booleans())
def test_regular_grid_is_the_pixel_centers(height, width, align_corners):
    grid = grids.regular((height, width), align_corners)
    assert grid.shape == (height, width, 2)
    for points, size in ((grid[0, :, 0], width), (grid[:, 0, 1], height)):
        np.testing.assert_allclose(
            grids.to_pixel(points, size, align_corners), np.arange(size), rtol=0, atol=1e-10
        )
        np.testing.assert_array_equal(points, -points[::-1], err_msg="not symmetric")
    np.testing.assert_array_equal(grid[..., 0], np.broadcast_to(grid[:1, :, 0], (height, width)))
    np.testing.assert_array_equal(grid[..., 1], np.broadcast_to(grid[:, :1, 1], (height, width)))


def test_regular_grid_is_shared_and_cannot_be_changed():
    grid = grids.regular((3, 4))
    assert grids.regular((3, 4)) is grid
    with pytest.raises(ValueError, match="read-only"):
        grid[0, 0, 0] = 0


@settings(deadline=None)  # a busy machine is not a fault of ours
@given(size=st.tuples(*[st.integers(1, 12)] * 3), align_corners=st.booleans())
def test_regular_grid_of_a_volume_is_x_y_z(size, align_corners):
    grid = grids.regular(size, align_corners)
    assert grid.shape == (*size, 3)
    axes = [grids.to_normalized(np.arange(n), n, align_corners) for n in size]
    for point in np.ndindex(size):
        expected = [axis[i] for axis, i in zip(axes, point, strict=True)][::-1]
        np.testing.assert_array_equal(grid[point], expected)


@pytest.mark.parametrize(
    ("size", "align_corners", "expected"),
    [
        ((20, 40), False, (20, 10)),
        ((40, 20), False, (10, 20)),
        ((3, 5), True, (2, 1)),
        ((28, 28), True, (13.5, 13.5)),
        ((1, 9), False, (4.5, 0.5)),
        # One pixel has no extent here, and nothing can turn: any number but 0 will do.
        ((1, 9), True, (4, 4)),
        ((9, 1), True, (4, 4)),
        ((1, 1), True, (1, 1)),
        ((2, 4, 6), False, (3, 2, 1)),
        ((3, 5, 9), True, (4, 2, 1)),
        ((1, 5, 9), True, (4, 2, 4)),
        ((1, 1, 1), True, (1, 1, 1)),
    ],
)
def test_extents_are_pixels_per_normalized_unit(size, align_corners, expected):
    assert grids.extents(size, align_corners) == expected
    for axis, n in enumerate(reversed(size)):
        if n > 1 or not align_corners:
            unit = np.diff(grids.to_pixel(np.array([0.0, 1.0]), n, align_corners))
            assert unit == expected[axis]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3), [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)]),
        ((1, 3), [(0, 0), (1, 0), (2, 0), (1, 0)]),
        ((3, 1), [(0, 0), (0, 1), (0, 2), (0, 1)]),
        ((1, 1), [(0, 0)]),
    ],
)
def test_outline_walks_clockwise_around_the_border(shape, expected, align_corners):
    grid = np.stack([grids.regular(shape, align_corners)] * 2)
    found = grids.outline(grid, shape, align_corners)
    assert found.shape == (2, len(expected), 2)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[0], found[1])


def test_outline_is_in_pixels_of_the_image_that_is_read():
    found = grids.outline(grids.regular((2, 2))[None], (4, 8))
    np.testing.assert_allclose(found[0], [(1.5, 0.5), (5.5, 0.5), (5.5, 2.5), (1.5, 2.5)])
