"""The monitor: a picture after every epoch of what the transformer makes of a few images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from stn import grids, models
from stn.deformations import Deformation
from stn.tool import alignment, pictures, runs
from stn.tool.config import Config
from stn.transforms import TRANSFORMS

_STREAM = 3  # of randomness; training, validation and test have 0 to 2


class Monitor:
    """Draws fixed validation images, what the layer made of them, and where it looked."""

    def __init__(
        self,
        run: runs.Run,
        config: Config,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        count: int = 16,
    ):
        self._run, self._config, self._names = run, config, names
        # One image of each class first, so that the picture shows as many as it can.
        rng = np.random.default_rng((config.seed, _STREAM))
        order = rng.permutation(len(labels))
        _, first = np.unique(labels[order], return_index=True)
        first = rng.permutation(first)
        rest = np.setdiff1d(np.arange(len(order)), first)
        chosen = order[np.concatenate([first, rest])[:count]]
        self._images, self._labels = images[chosen], labels[chosen]
        outputs = {"probabilities": model.output}
        if config.transform != "none":
            straight, _, grid = model.get_layer(models.TRANSFORMER).output
            outputs |= {"straight": straight, "grid": grid}
        self._bends = isinstance(TRANSFORMS.get(config.transform), Deformation)
        self._probe = keras.Model(model.input, outputs)
        self._probe.compile(jit_compile=model.jit_compile)

    def draw(self, epoch: int) -> None:
        """Write the picture after an epoch; epoch 0 is before training."""
        found = self._probe.predict_on_batch(self._images)
        straight, outlines, lines, notes = found.get("straight"), None, [], None
        if straight is not None:
            size = self._images.shape[1:3]
            outlines = grids.outline(found["grid"], size)
            lines = _inner_lines(found["grid"], size) if self._bends else []
            notes = [alignment.in_short(one) for one in alignment.describe(found["grid"], size)]
        captions = []
        for label, guess in zip(self._labels, found["probabilities"].argmax(-1), strict=True):
            mark = "✓" if guess == label else "✗"
            captions.append(f"{mark} {self._names[label]} → {self._names[guess]}")
        picture = pictures.draw_frame(
            self._images,
            straight,
            outlines,
            title=f"Epoch {epoch} of {self._config.epochs}" if epoch else "Before training",
            subtitle=_subtitle(self._config),
            captions=captions,
            notes=notes,
            lines=lines,
        )
        with runs.atomic(self._run.frame_file(epoch)) as temporary:
            picture.save(temporary)


def _inner_lines(grid: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Three rows and three columns of sampling grids, in pixels of the image they read."""
    axes = [grids.to_pixel(grid[..., i], n, False) for i, n in enumerate(reversed(size))]
    points = np.stack(axes, axis=-1)
    rows, columns = (
        np.unique(np.linspace(0, n - 1, 5)[1:-1].round().astype(int)) for n in grid.shape[1:3]
    )
    return [*(points[:, row] for row in rows), *(points[:, :, column] for column in columns)]


def _subtitle(config: Config) -> str:
    distortion = "undistorted" if config.distort == "none" else f"{config.distort} distortion"
    transformer = "no" if config.transform == "none" else config.transform
    return f"{config.data}, {distortion}, {transformer} transformer"
