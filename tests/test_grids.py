"""The corner conventions: where pixels are in normalized coordinates."""

import numpy as np
import pytest
from hypothesis import given
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


@given(size=SIZES, align_corners=st.booleans(), pixel=st.floats(-1000, 1000))
def test_conversions_are_inverse(size, align_corners, pixel):
    there = grids.to_normalized(np.float64(pixel), size, align_corners)
    back = grids.to_pixel(there, size, align_corners)
    # One pixel with its corners aligned has no extent: every point is its center.
    expected = 0 if size == 1 and align_corners else pixel
    np.testing.assert_allclose(back, expected, rtol=1e-12, atol=1e-12 * size)


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


# PyTorch warns that one-pixel axes were different before its version 1.3.
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")
@pytest.mark.parametrize("align_corners", [False, True])
def test_regular_grid_is_that_of_torch(align_corners):
    torch = pytest.importorskip("torch")
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], dtype=torch.float64)
    for size in ((1, 1), (1, 7), (4, 1), (31, 20)):
        theirs = torch.nn.functional.affine_grid(identity, (1, 1, *size), align_corners)
        np.testing.assert_allclose(
            grids.regular(size, align_corners), theirs[0].numpy(), rtol=0, atol=1e-15
        )


@pytest.mark.parametrize(
    ("size", "align_corners", "expected"),
    [
        ((20, 40), False, 2),
        ((40, 20), False, 0.5),
        ((3, 5), True, 2),
        ((28, 28), True, 1),
        ((1, 9), False, 9),
        ((1, 9), True, 1),
        ((9, 1), True, 1),
        ((1, 1), True, 1),
    ],
)
def test_aspect(size, align_corners, expected):
    assert grids.aspect(size, align_corners) == expected


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
