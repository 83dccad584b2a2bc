"""Examples: a few images, where a transformer looks in each, and what it makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stn import grids, models
from stn.deformations import Deformation
from stn.tool import alignment
from stn.transforms import TRANSFORMS


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a classifier makes of some images; without a transformer only `probabilities`.

    Attributes:
        probabilities: `(count, classes)`.
        params: Parameters of the transformation, `(count, size)`.
        straight: The straightened images, `(count, height, width, channels)` in [0, 1].
        outlines: Points around the border of each sampling grid, in pixels of the input.
        lines: Lines inside the outlines, likewise; none where the outline says it all.
        about: What happened to each picture, as `stn.tool.alignment.describe` has it.
    """

    probabilities: np.ndarray
    params: np.ndarray | None = None
    straight: np.ndarray | None = None
    outlines: np.ndarray | None = None
    lines: Sequence[np.ndarray] = dataclasses.field(default_factory=list)
    about: Sequence[Mapping[str, float]] = ()


class Probe:
    """A classifier of `stn.classifier` that shows what its transformer does.

    Args:
        model: The classifier, with a transformer or without.
        transform: The name of its family, or `"none"`.
    """

    def __init__(self, model: Any, transform: str):
        import keras

        outputs = {"probabilities": model.output}
        if transform != "none":
            straight, params, grid = model.get_layer(models.TRANSFORMER).output
            outputs |= {"straight": straight, "params": params, "grid": grid}
        self._bends = isinstance(TRANSFORMS.get(transform), Deformation)
        self._model = keras.Model(model.input, outputs)
        self._model.compile(jit_compile=getattr(model, "jit_compile", False))

    def look(self, images: np.ndarray, *, mesh: bool = False) -> Seen:
        """Show what it makes of images.

        Args:
            images: uint8 `(count, height, width, channels)`.
            mesh: Draw lines inside the outlines even where the family cannot bend them.
        """
        found = {
            key: np.asarray(value) for key, value in self._model.predict_on_batch(images).items()
        }
        if "grid" not in found:
            return Seen(found["probabilities"])
        size = images.shape[1:3]
        return Seen(
            found["probabilities"],
            found["params"],
            found["straight"],
            grids.outline(found["grid"], size),
            _inner_lines(found["grid"], size) if mesh or self._bends else [],
            alignment.describe(found["grid"], size),
        )


def _inner_lines(grid: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Three rows and three columns of sampling grids, in pixels of the image they read."""
    axes = [grids.to_pixel(grid[..., i], n, False) for i, n in enumerate(reversed(size))]
    points = np.stack(axes, axis=-1)
    rows, columns = (
        np.unique(np.linspace(0, n - 1, 5)[1:-1].round().astype(int)) for n in grid.shape[1:3]
    )
    return [*(points[:, row] for row in rows), *(points[:, :, column] for column in columns)]
