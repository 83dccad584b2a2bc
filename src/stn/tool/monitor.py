"""The monitor: a picture after every epoch of what the transformer makes of a few images."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from stn import grids, models
from stn.tool import pictures, runs
from stn.tool.config import Config

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
        self._probe = keras.Model(model.input, outputs)
        self._probe.compile(jit_compile=model.jit_compile)

    def draw(self, epoch: int) -> None:
        """Write the picture after an epoch; epoch 0 is before training."""
        found = self._probe.predict_on_batch(self._images)
        straight, outlines = found.get("straight"), None
        if straight is not None:
            outlines = grids.outline(found["grid"], self._images.shape[1:3])
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
        )
        with runs.atomic(self._run.frame_file(epoch)) as temporary:
            picture.save(temporary)


def _subtitle(config: Config) -> str:
    distortion = "undistorted" if config.distort == "none" else f"{config.distort} distortion"
    transformer = "no" if config.transform == "none" else config.transform
    return f"{config.data}, {distortion}, {transformer} transformer"
