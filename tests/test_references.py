"""Against independent references, on at least 1,000 random cases each.

A case is one image with its own points or parameters. `pytest -s` prints the largest errors. On
further backends PyTorch is reference enough.
"""

import itertools

import numpy as np
import pytest
from keras import ops

import stn
from conftest import pairs
from stn.samplers import PADDINGS

conventions = pytest.mark.parametrize("align_corners", [False, True])
SIZES = {
    2: [(1, 1), (1, 9), (8, 1), (2, 2), (7, 12), (16, 11)],
    3: [(1, 1, 1), (1, 5, 4), (3, 4, 2), (6, 5, 7)],
}
COUNT = {2: 84, 3: 126}  # of each size and in each corner convention: 1,008 cases


def compare(reference, found, expected, tolerance):
    error = float(np.abs(np.asarray(found, "float64") - np.asarray(expected, "float64")).max())
    print(f"\n{reference}: largest error {error:.1e}, tolerance {tolerance:.0e}")
    assert np.isfinite(error)
    assert error <= tolerance


def draw(size, count, points, align_corners, seed):
    """Images in [-1, 1], and points in and around them, away from what only rounding decides."""
    rng = np.random.default_rng([seed, *size])
    images = rng.uniform(-1, 1, (count, *size, 2)).astype("float32")
    points = rng.uniform(-1.6, 1.6, (count, points, len(size))).astype("float32")
    for axis, n in enumerate(reversed(size)):
        half = stn.grids.half_extent(n, align_corners)
        pixel = points[..., axis] * half + (n - 1) / 2
        near = np.abs(pixel - np.floor(pixel) - 0.5) < 1e-3  # where "nearest" is undecided
        points[..., axis] += np.where(near, 0.01 / (half or 1), 0).astype("float32")
    return images, points


def sample(images, points, **options):
    found = stn.sample(images, points, data_format="channels_last", **options)
    return ops.convert_to_numpy(found)


@pytest.mark.parametrize("dimensions", [2, 3])
@conventions
def test_grid_sample(dimensions, align_corners):
    """Bicubic is refused by PyTorch for volumes."""
    torch = pytest.importorskip("torch")
    samplers = ["bilinear", "nearest", "bicubic"][: 5 - dimensions]
    count = COUNT[dimensions]
    for size, padding in itertools.product(SIZES[dimensions], ("zeros", "border", "reflection")):
        images, points = draw(size, count, 40, align_corners, 1)
        for sampler in samplers:
            expected = torch.nn.functional.grid_sample(
                torch.tensor(np.moveaxis(images, -1, 1)),
                torch.tensor(points).reshape(count, *[1] * (dimensions - 1), 40, dimensions),
                sampler,
                padding,
                align_corners,
            )
            expected = np.moveaxis(expected.numpy().reshape(count, 2, 40), 1, -1)
            options = {"sampler": sampler, "padding": padding, "align_corners": align_corners}
            found = sample(images, points, **options)
            compare(f"grid_sample {size} {sampler} {padding}", found, expected, 1e-5)


# PyTorch warns that one-pixel axes were different before its version 1.3.
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")
@pytest.mark.parametrize("dimensions", [2, 3])
@conventions
def test_affine_grid(dimensions, align_corners):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(dimensions)
    for size in SIZES[dimensions]:
        theta = rng.normal(size=(250, dimensions, dimensions + 1)).astype("float32")
        expected = torch.nn.functional.affine_grid(
            torch.tensor(theta), (250, 1, *size), align_corners
        )
        family = stn.get_transform("affine", dimensions=dimensions)
        points = stn.grids.regular(size, align_corners)[None]
        found = ops.convert_to_numpy(family(theta.reshape(250, -1), points))
        compare(f"affine_grid {size}", found, expected.numpy(), 3e-6)


@pairs(("output_size", "align_corners"), [(8, 5), (3, 6)], [False, True])
def test_affine_warp(output_size, align_corners):
    """The way of `warp`, which keeps the identity exact, to the same place as PyTorch's."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    images = rng.uniform(-1, 1, (1000, 8, 5, 1)).astype("float32")
    theta = np.eye(2, 3) + 0.4 * rng.normal(size=(1000, 2, 3))
    grid = torch.nn.functional.affine_grid(
        torch.tensor(theta.astype("float32")), (1000, 1, *output_size), align_corners
    )
    for sampler, padding in itertools.product(("bilinear", "bicubic"), ("zeros", "reflection")):
        expected = torch.nn.functional.grid_sample(
            torch.tensor(images).permute(0, 3, 1, 2), grid, sampler, padding, align_corners
        )
        found = stn.warp(
            images,
            theta.reshape(1000, 6).astype("float32"),
            output_size=output_size,
            sampler=sampler,
            padding=padding,
            align_corners=align_corners,
            data_format="channels_last",
        )
        found = np.moveaxis(ops.convert_to_numpy(found), -1, 1)
        compare(f"affine_grid, grid_sample {sampler} {padding}", found, expected, 1e-5)


@pytest.mark.once
def test_rotations_in_space():
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    rng = np.random.default_rng(0)
    family = stn.get_transform("rigid", dimensions=3)
    first, second = (
        np.concatenate([rng.normal(0, 1.5, (1000, 3)), np.zeros((1000, 3))], axis=1) for _ in "ab"
    )
    first[:100] *= 1e-5  # where the formulas have a limit instead
    expected = rotation.from_rotvec(first[:, :3])
    found = ops.convert_to_numpy(family.matrix(first.astype("float32")))[..., :3]
    compare("Rotation.as_matrix", found, expected.as_matrix(), 3e-6)
    both = family.compose(first.astype("float32"), second.astype("float32"))
    found = rotation.from_rotvec(ops.convert_to_numpy(both)[:, :3]).as_matrix()
    expected = (expected * rotation.from_rotvec(second[:, :3])).as_matrix()
    compare("Rotation * Rotation", found, expected, 1e-5)


@pytest.mark.once
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("padding", [padding for padding in PADDINGS if padding != "inward"])
def test_map_coordinates(dimensions, padding):
    """What SciPy calls "constant" does not blend with the fill value at the edge."""
    ndimage = pytest.importorskip("scipy.ndimage")
    fill = 0.25 if padding == "constant" else 0.0
    for size, align_corners in itertools.product(SIZES[dimensions], (False, True)):
        if padding == "reflection" and align_corners and 1 in size:
            continue  # SciPy cannot mirror about the center of a single pixel
        mode = {
            "zeros": "grid-constant",
            "constant": "grid-constant",
            "border": "nearest",
            "reflection": "mirror" if align_corners else "reflect",
            "circular": "grid-wrap",
        }[padding]
        images, points = draw(size, COUNT[dimensions], 40, align_corners, 2)
        pixels = [
            stn.grids.to_pixel(points[..., axis].astype("float64"), n, align_corners)
            for axis, n in enumerate(reversed(size))
        ][::-1]
        for order, sampler in enumerate(("nearest", "bilinear")):
            expected = [
                ndimage.map_coordinates(
                    image[..., 0].astype("float64"),
                    [axis[i] for axis in pixels],
                    order=order,
                    mode=mode,
                    cval=fill,
                )
                for i, image in enumerate(images)
            ]
            found = sample(
                images,
                points,
                sampler=sampler,
                padding=padding,
                fill_value=fill,
                align_corners=align_corners,
            )[..., 0]
            compare(f"map_coordinates {size} {sampler} {mode}", found, expected, 1e-5)


BORDERS = {"zeros": "BORDER_CONSTANT", "border": "BORDER_REPLICATE", "reflection": "BORDER_REFLECT"}


def to_pixels(matrix, size):
    """A projective matrix between normalized points, between pixels (`align_corners=False`)."""
    height, width = size
    norm = np.array(
        [[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]], "float64"
    )
    return np.linalg.inv(norm) @ matrix @ norm


@pytest.mark.once
@pytest.mark.parametrize("padding", BORDERS)
def test_warp_perspective(padding):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    size = (14, 17)
    images = rng.uniform(-1, 1, (340, *size, 1)).astype("float32")
    params = np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], "float32"), (340, 1))
    params += (0.25 * rng.normal(size=params.shape)).astype("float32")
    params[:, 6:] = np.clip(params[:, 6:], -0.4, 0.4)  # the denominator stays above 0.2
    expected = [
        cv2.warpPerspective(
            image[..., 0],
            to_pixels(np.append(row, 1).reshape(3, 3).astype("float64"), size),
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=getattr(cv2, BORDERS[padding]),
        )
        for image, row in zip(images, params, strict=True)
    ]
    found = stn.warp(images, params, "projective", padding=padding, data_format="channels_last")
    compare(f"warpPerspective {padding}", ops.convert_to_numpy(found)[..., 0], expected, 5e-5)


@pytest.mark.once
@pytest.mark.parametrize("padding", BORDERS)
def test_remap(padding):
    cv2 = pytest.importorskip("cv2")
    size = (9, 12)
    images, points = draw(size, 340, 30, False, 3)
    # OpenCV rounds to 1/32 of a pixel here: only there can the two agree.
    x, y = (
        np.round(32 * stn.grids.to_pixel(points[..., axis], n, False)) / 32
        for axis, n in enumerate(reversed(size))
    )
    points = np.stack(
        [stn.grids.to_normalized(at, n, False) for at, n in ((x, size[1]), (y, size[0]))], axis=-1
    )
    expected = [
        cv2.remap(
            image, x[i][None], y[i][None], cv2.INTER_LINEAR, None, getattr(cv2, BORDERS[padding])
        )[0]
        for i, image in enumerate(images)
    ]
    compare(f"remap {padding}", sample(images, points, padding=padding), expected, 1e-5)


@pytest.mark.once
def test_thin_plate_spline():
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(0)
    for control in (4, rng.uniform(-1, 1, (7, 2))):
        family = stn.ThinPlateSpline(control)
        moved = 0.2 * rng.normal(size=(500, *family.control.shape))
        points = rng.uniform(-1.5, 1.5, (500, 20, 2)).astype("float32")
        expected = [
            transform.ThinPlateSplineTransform.from_estimate(
                family.control, family.control + moves
            )(at.astype("float64"))
            for moves, at in zip(moved, points, strict=True)
        ]
        found = ops.convert_to_numpy(family(moved.reshape(500, -1).astype("float32"), points))
        compare(f"ThinPlateSplineTransform {family.size}", found, expected, 2e-4)
