"""What a transformer did to an image, in physical numbers and in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stn import grids


def affine_part(grid: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The affine maps closest to sampling grids, in pixels of the input about its center.

    Args:
        grid: Normalized sampling points `(count, height, width, 2)` of any family.
        size: `(height, width)` of the images that are read.

    Returns:
        Matrices `(count, 3, 3)`, from the output, stretched to the size of the input, to the
        input; and how far the grids bend away from them: the root mean square distance, as a
        fraction of the longer side.

    Example:
        >>> matrix, bend = affine_part(0.5 * grids.regular((4, 4))[None], (8, 8))
        >>> (matrix[0].round(6) + 0.0).tolist(), float(bend[0].round(6))
        ([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]], 0.0)
    """
    extents = np.array(grids.extents(size, False))
    grid = np.asarray(grid, "float64")
    count, height, width = grid.shape[:3]
    points = grid.reshape(count, -1, 2) * extents
    regular = grids.regular((height, width)).reshape(-1, 2) * extents
    basis = np.concatenate([regular, np.ones((len(regular), 1))], axis=1)
    fitted = np.linalg.pinv(basis) @ np.where(np.isfinite(points), points, 0.0)
    matrix = np.tile(np.eye(3), (count, 1, 1))
    matrix[:, :2] = fitted.transpose(0, 2, 1)
    # Along an axis of one point nothing is stretched: there it goes as along the other.
    if width == 1:
        matrix[:, :2, 0] = [1, 0] if height == 1 else matrix[:, [1, 0], 1] * [1, -1]
    if height == 1:
        matrix[:, :2, 1] = matrix[:, [1, 0], 0] * [-1, 1]
    distance = np.linalg.norm(points - basis @ fitted, axis=-1)
    return matrix, np.sqrt(np.mean(distance**2, axis=-1)) / max(size)


def decompose(matrix: Any, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Write affine maps as rotation times shear times scale, with a shift.

    Args:
        matrix: `(count, 3, 3)` in pixels about the center, from output to input.
        size: `(height, width)` of the input.

    Returns:
        Arrays `(count,)` of what happened to the *picture*: `angle` in degrees, positive
        counterclockwise; `zoom_x` and `zoom_y`, factors (`zoom_y` is negative if mirrored);
        `shear`, a tangent; `right` and `down`, how far the content moved, as fractions of the
        image.

    Example:
        >>> turned = np.array([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])
        >>> float(decompose(turned, (8, 8))["angle"][0])
        90.0
    """
    matrix = np.asarray(matrix, "float64")
    (a, b), (d, e) = (matrix[:, row, :2].T for row in (0, 1))
    angle = np.arctan2(d, a)
    cos, sin = np.cos(angle), np.sin(angle)
    with np.errstate(divide="ignore", invalid="ignore"):
        across, upright = cos * b + sin * e, cos * e - sin * b
        # Where the content in the middle of the input ends up in the output.
        moved = -np.linalg.pinv(matrix[:, :2, :2]) @ matrix[:, :2, 2:]
        return {
            "angle": np.rad2deg(angle),
            "zoom_x": 1 / np.hypot(a, d),
            "zoom_y": 1 / upright,
            "shear": across / upright,
            "right": moved[:, 0, 0] / size[1],
            "down": moved[:, 1, 0] / size[0],
        }


def describe(grid: Any, size: tuple[int, int]) -> list[dict[str, float]]:
    """`decompose` for sampling grids, one dictionary per image, with how much each bends.

    Args:
        grid: As for `affine_part`.
        size: As for `affine_part`.

    Example:
        >>> about = describe(grids.regular((4, 4))[None], (4, 4))[0]
        >>> about["zoom_x"], about["bend"] < 1e-9
        (1.0, True)
    """
    matrix, bend = affine_part(grid, size)
    columns = {**decompose(matrix, size), "bend": bend}
    return [
        {key: round(float(values[i]), 6) + 0.0 for key, values in columns.items()}
        for i in range(len(bend))
    ]


def in_words(about: Mapping[str, float]) -> str:
    """What happened to a picture, in plain words; what cannot be seen is left out.

    Args:
        about: One dictionary of `describe`.

    Example:
        >>> in_words({"angle": 31, "zoom_x": 1.2, "zoom_y": 1.2, "shear": 0, "right": 0, "down": 0,
        ...           "bend": 0})
        'turned 31° left, zoomed 1.2x'
    """
    if not all(np.isfinite(list(about.values()))):
        return "not a picture any more: the transformation is not finite"
    words = []
    zoom_x, zoom_y = about["zoom_x"], abs(about["zoom_y"])
    zoom = np.sqrt(zoom_x * zoom_y)
    if about["zoom_y"] < 0:
        words.append("mirrored")
    if abs(about["angle"]) >= 1.5:
        words.append(
            f"turned {abs(about['angle']):.0f}° {'left' if about['angle'] > 0 else 'right'}"
        )
    if abs(np.log(zoom)) >= np.log(1.03):
        words.append(f"zoomed {zoom:.2g}x" if zoom < 1 else f"zoomed {zoom:.3g}x")
    if abs(np.log(zoom_x / zoom_y)) >= np.log(1.08):
        wide = zoom_x > zoom_y
        ratio = zoom_x / zoom_y if wide else zoom_y / zoom_x
        words.append(f"stretched {'sideways' if wide else 'upwards'} {ratio:.2g}x")
    if abs(about["shear"]) >= 0.05:
        words.append(f"sheared by {abs(about['shear']):.2f}")
    for key, positive, negative in (("right", "right", "left"), ("down", "down", "up")):
        if abs(about[key]) >= 0.015:
            words.append(f"moved {abs(about[key]):.0%} {positive if about[key] > 0 else negative}")
    if about["bend"] >= 0.01:
        words.append(f"bent by {about['bend']:.0%}")
    return ", ".join(words).replace("%", " %") or "left as it is"


def in_short(about: Mapping[str, float]) -> str:
    """The turn and the zoom of a picture in a few characters, for a caption.

    Args:
        about: One dictionary of `describe`.

    Example:
        >>> in_short({"angle": -31.2, "zoom_x": 1.2, "zoom_y": 1.2})
        '31° right, 1.2x'
    """
    zoom = np.sqrt(abs(about["zoom_x"] * about["zoom_y"]))
    if not np.isfinite(about["angle"] + zoom):
        return "not finite"
    turn = f"{abs(about['angle']):.0f}°"
    if turn != "0°":
        turn += " left" if about["angle"] > 0 else " right"
    return f"{turn}, {zoom:.1f}x" if zoom < 10 else f"{turn}, {zoom:.0f}x"


class Congealing:
    """The average image of each class, and how sharp they are.

    What a transformer aligns becomes alike, so that its average is sharp (congealing, Learned-
    Miller 2006).

    Args:
        classes: How many there are.

    Example:
        >>> averages = Congealing(2)
        >>> averages.add(np.ones((4, 2, 2, 1)), np.array([0, 0, 1, 1]))
        >>> averages.numbers()
        {'within_class_variance': 0.0, 'sharpness': 1.0}
    """

    def __init__(self, classes: int):
        self._counts = np.zeros(classes)
        self._sums: Any = 0.0
        self._squares: Any = 0.0

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Count images `(count, height, width, channels)` in [0, 1] and their labels in."""
        one_hot = np.eye(len(self._counts))[labels].T
        self._counts += one_hot.sum(axis=1)
        self._sums = self._sums + np.tensordot(one_hot, images, 1)
        self._squares = self._squares + np.tensordot(one_hot, np.square(images), 1)

    def means(self) -> np.ndarray:
        """The averages `(classes, height, width, channels)`, NaN for a class without images."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums / self._counts[:, None, None, None]

    def numbers(self) -> dict[str, float]:
        """How alike the images of a class are.

        Returns:
            `within_class_variance`, the mean over classes and pixels; and `sharpness`, the share of
            the energy of the images that is in the averages: 1 if all images of a class are
            alike, and the same however large the content is drawn.
        """
        seen = self._counts > 0
        counts = self._counts[seen][:, None, None, None]
        means = self._sums[seen] / counts
        variance = self._squares[seen] / counts - np.square(means)
        energy = self._squares.sum()
        return {
            "within_class_variance": float(np.clip(variance.mean(axis=(1, 2, 3)), 0, None).mean()),
            "sharpness": float((np.square(means) * counts).sum() / energy) if energy else 1.0,
        }


def survey(probe: Any, images: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """What the transformer of a classifier makes of many images.

    Args:
        probe: A `stn.tool.examples.Probe` of a classifier with a transformer.
        images: uint8 `(count, height, width, channels)`.
        labels: `(count,)` integers in `[0, classes)`.
        classes: How many there are.

    Returns:
        `inputs` and `outputs`, each a `Congealing`, the outputs those of the first head;
        `quantities`, those of `decompose` and `bend`, arrays `(count,)`, or of several heads
        `(heads * count,)`.
    """
    before, after, found = Congealing(classes), Congealing(classes), []
    size, start = images.shape[1:3], 0
    for probabilities, heads in probe.parts(images):
        part = slice(start, start + len(probabilities))
        start = part.stop
        before.add(images[part] / 255, labels[part])
        after.add(heads[0][0].astype("float64"), labels[part])
        for _, _, grid in heads:
            matrix, bend = affine_part(grid, size)
            found.append({**decompose(matrix, size), "bend": bend})
    quantities = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
    return {"inputs": before, "outputs": after, "quantities": quantities}
