"""The monitor: a picture after every epoch of what the transformer makes of a few images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stn.tool import alignment, examples, pictures, runs, walls
from stn.tool.config import Config, Stream


class Monitor:
    """Draws fixed validation images, what the layer made of them, and where it looked."""

    def __init__(
        self,
        run: runs.Run,
        config: Config,
        probe: examples.Probe,
        images: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        count: int = 16,
    ):
        self._run, self._config, self._names = run, config, names
        chosen = walls.one_of_each(labels, count, (config.seed, Stream.MONITOR))
        self._images, self._labels = images[chosen], labels[chosen]
        self._probe = probe

    def draw(self, epoch: int) -> None:
        """Write the picture after an epoch; epoch 0 is before training."""
        seen = self._probe.look(self._images)
        captions = []
        for label, guess in zip(self._labels, seen.probabilities.argmax(-1), strict=True):
            mark = "✓" if guess == label else "✗"
            captions.append(f"{mark} {self._names[label]} → {self._names[guess]}")
        (straight, outlines, lines), *more = seen.drawn
        picture = pictures.draw_frame(
            self._images,
            straight,
            outlines,
            title=f"Epoch {epoch} of {self._config.epochs}" if epoch else "Before training",
            subtitle=_subtitle(self._config),
            captions=captions,
            # There is no room for the notes of several heads.
            notes=seen.tell(alignment.in_short) if len(seen.looks) == 1 else None,
            lines=lines,
            more=more,
        )
        pictures.save(picture, self._run.frame_file(epoch))


def _subtitle(config: Config) -> str:
    distortion = "undistorted" if config.distort == "none" else f"{config.distort} distortion"
    transformer = "no" if config.transform == "none" else config.transform
    return f"{config.data}, {distortion}, {transformer} transformer"
