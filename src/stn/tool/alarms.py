"""Alarms: what goes wrong with a transformer in training, measured and put in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stn import grids
from stn.tool.config import Config

IMAGES = 256  # of the validation images, looked at after every epoch

OUT_OF_FRAME = 0.4  # an eighth of a turn puts a sixth of the points outside
COLLAPSED = 0.02  # of the image: a seventh of its side
ZOOMED_OUT = 3.0  # times the image
ALIKE = 0.002  # of the side of the image; a pixel of 28 is 0.036
SATURATED = 0.5  # of the images at their bounds, where a gradient has a seventh of its size left
VANISHED = 1e-7  # what Adam adds to a gradient before it divides by it; below, little moves
WAIT = 3  # epochs: the first may be one of warm-up, and layers start at the identity


def _far_from_one(values: Iterable[float]) -> float:
    return max(values, key=lambda value: abs(math.log(max(value, 1e-12))))


_WORST: dict[str, Callable[..., float]] = {
    "finite": min,
    "out_of_frame": max,
    "sampled_area": _far_from_one,
    "theta_spread": min,
    "theta_moved": max,  # a head may stay where it is while another one moves
    "theta_rank": min,
}


def measure(grid: Any) -> dict[str, float]:
    """Where a transformer looks in a batch of images, in a few numbers.

    Args:
        grid: Normalized sampling points `(count, height, width, 2)` of any family.

    Returns:
        `out_of_frame`, the share of points outside the image; `sampled_area`, the median area of
        the region that is read, the image being 1; `theta_spread`, how far the points of an image
        are from those of the average image, and `theta_moved`, how far from the identity, both
        the root mean square as a fraction of the side; `theta_rank`, in how many independent ways
        the points differ between images, by at least `ALIKE` each: 0 if all images are treated
        alike, 2 if they are moved and nothing else; `finite`, the share of images whose points
        all are numbers. The others are of those images; if there are none, they are left out.

    Example:
        >>> found = measure(0.5 * grids.regular((8, 8))[None])
        >>> found["sampled_area"], found["out_of_frame"], found["theta_rank"]
        (0.25, 0.0, 0)
    """
    grid = np.asarray(grid, "float64")
    finite = np.isfinite(grid).all(axis=(1, 2, 3))
    found = {"finite": float(finite.mean())}
    grid = grid[finite]
    if not len(grid):
        return found
    height, width = grid.shape[1:3]
    outside = (np.abs(grid) > 1 + 1e-6).any(axis=-1)
    found["out_of_frame"] = float(outside.mean())
    if min(height, width) > 1:
        # A cell of four neighbors has half the cross product of its diagonals as area.
        down = grid[:, 1:, 1:] - grid[:, :-1, :-1]
        up = grid[:, :-1, 1:] - grid[:, 1:, :-1]
        cells = np.abs(down[..., 0] * up[..., 1] - down[..., 1] * up[..., 0]) / 2
        # The points are the middles of pixels; the image is 2 by 2.
        area = cells.mean(axis=(1, 2)) * height * width / 4
        found["sampled_area"] = float(np.median(area))
    for key, center in (
        ("theta_spread", grid.mean(axis=0)),
        ("theta_moved", grids.regular((height, width))),
    ):
        distance = np.square((grid - center) / 2).sum(axis=-1)
        found[key] = float(np.sqrt(distance.mean()))
    # The spread, split into what does not depend on each other; some of the points say enough.
    some = grid[:, :: math.ceil(height / 16), :: math.ceil(width / 16)]
    some = some.reshape(len(grid), -1, 2)
    differences = ((some - some.mean(axis=0)) / 2).reshape(len(grid), -1)
    ways = np.linalg.svd(differences, compute_uv=False) / np.sqrt(len(grid) * some.shape[1])
    found["theta_rank"] = int((ways >= ALIKE).sum())
    return found


class Lookout:
    """Measures after every epoch, on the same validation images.

    Args:
        model: A classifier of `stn.classifier`, with a transformer or without.
        config: Of the run.
        probe: A `stn.tool.examples.Probe` of the model.
        images: Validation images, uint8 `(count, height, width, channels)`.
        labels: `(count,)` integers.
    """

    def __init__(
        self, model: Any, config: Config, probe: Any, images: np.ndarray, labels: np.ndarray
    ):
        # Always guessing the most frequent class is right this often, and by luck a bit more.
        share = float(np.bincount(labels).max() / len(labels))
        self._luck = min(1.0, share + 2 * (share * (1 - share) / len(labels)) ** 0.5)
        self._images = images[np.linspace(0, len(images) - 1, min(IMAGES, len(images)), dtype=int)]
        self._layer: Any = None
        if config.transform != "none":
            import keras

            from stn import models

            self._model, self._probe = model, probe
            self._layer = model.get_layer(models.TRANSFORMER)
            self._scaled = keras.Model(model.input, self._layer.input)

    def measure(self) -> dict[str, float]:
        """What there is to watch now.

        Returns:
            `luck`, the accuracy of a mere guess; what `measure` says of the transformer;
            `saturated`, the share of the images whose parameters are at their bounds, if there are
            bounds; and `localization_gradient` and `classifier_gradient`, the root mean square of
            the gradient over the last steps, to the weights of the localization network and to
            those behind the transformer. Of several heads it is what the worst of them does.
        """
        found = {"luck": self._luck}
        if self._layer is not None:
            heads = zip(*(part for _, part in self._probe.parts(self._images)), strict=True)
            measured = [measure(np.concatenate([grid for _, _, grid in head])) for head in heads]
            for key in {key: None for head in measured for key in head}:
                found[key] = _WORST[key](head[key] for head in measured if key in head)
            if self._layer.bounds:
                import keras

                share = self._layer.saturation(self._scaled(self._images))
                share = keras.ops.convert_to_numpy(share)
                found["saturated"] = float(np.mean(np.nan_to_num(share, nan=1.0) > 0.5))
        found = {key: round(value, 6) for key, value in found.items()}
        return found | (self._gradients() if self._layer is not None else {})

    def _gradients(self) -> dict[str, float]:
        from stn.tool import learning

        # The head hears from the loss whatever happens; where the network in front of it is dead,
        # all images get the same.
        own = {id(v) for v in self._layer.trainable_variables}
        parts = {
            "localization": self._layer.localization.trainable_variables,
            "classifier": [v for v in self._model.trainable_variables if id(v) not in own],
        }
        found = {
            f"{name}_gradient": learning.gradient_size(self._model.optimizer, variables)
            for name, variables in parts.items()
        }
        return {key: float(f"{value:.4g}") for key, value in found.items() if value is not None}


def raised(record: Mapping[str, Any], config: Config) -> dict[str, str]:
    """The alarms of one epoch.

    Args:
        record: Of the history; what `Lookout.measure` says is in it.
        config: Of the run.

    Returns:
        By a short name, what is wrong and what to try.

    Example:
        >>> list(raised({"epoch": 4, "sampled_area": 0.0001}, Config()))
        ['collapsed']
    """
    slower = f"a --learning-rate smaller than {config.learning_rate:g}"
    found: dict[str, str] = {}
    # What is held, or given no rate at all, cannot move.
    waited = record.get("epoch", 0) >= WAIT + config.hold_epochs
    free = waited and config.localization_rate > 0
    pull = f"--frame-penalty {5 * config.frame_penalty or 1:g}"
    finite, outside = record.get("finite", 1.0), record.get("out_of_frame", 0.0)
    area, moved = record.get("sampled_area", 1.0), record.get("theta_moved")
    if finite < 1:
        found["not finite"] = (
            f"For {1 - finite:.1%} of the images the sampling points are not numbers: try "
            f"--gradient-clip 1, or {slower}"
        )
    if outside > OUT_OF_FRAME:
        inward = "" if config.padding == "inward" else "--padding inward, "
        found["outside"] = (
            f"{outside:.0%} of the sampling points lie outside the image, where there is nothing "
            f"to see: try {pull}, {inward}or {slower}"
        )
    if area < COLLAPSED:
        bends = config.transform in ("tps", "flow", "diffeomorphic")
        bounds = "displacement = 0.2" if bends else "scale = [0.3, 1.5]"
        found["collapsed"] = (
            f"The layer looks at only {area:.2%} of the image, almost a point: try "
            f"--bounds '{bounds}', {slower}, or a family that cannot zoom, such as "
            "--transform rigid"
        )
    if area > ZOOMED_OUT:
        found["zoomed out"] = (
            f"The layer looks at {area:.1f} times the area of the image, so that the content "
            f"becomes small: try {pull}, {slower}, or a family that cannot zoom, such "
            "as --transform rigid"
        )
    if record.get("saturated", 0.0) > SATURATED:
        found["at the bounds"] = (
            f"For {record['saturated']:.0%} of the images the transformation is at its bounds, "
            f"where it hardly learns: try wider --bounds, or {slower}"
        )
    if free and record.get("localization_gradient", 1.0) < VANISHED:
        found["no gradient"] = (
            "Hardly any gradient reaches the localization network "
            f"({record['localization_gradient']:.1g}; the classifier has "
            f"{record.get('classifier_gradient', 0.0):.1g}): try {slower}, and train again from "
            "the start, for its units may be dead"
        )
    # On images as they are, to leave them so may be right.
    if free and moved is not None and config.distort != "none":
        if moved < ALIKE:
            found["not moved"] = (
                "The layer still leaves every image as it is: try more --epochs, or "
                f"a --learning-rate larger than {config.learning_rate:g}"
            )
        elif record.get("theta_spread", 1.0) < ALIKE:
            network = "--model compact, " if config.model == "reference" else ""
            hold = "" if config.hold_epochs else "--hold-epochs 1, "
            layer = "The layer does" if config.heads == 1 else "At least one head does"
            found["all alike"] = (
                f"{layer} the same to every image, whatever is in it: try {network}more --epochs, "
                f"--localization-rate {config.localization_rate / 10:g}, {hold}"
                f"--identity-penalty 0.1, or {slower}"
            )
    accuracy = record.get("val_accuracy", 1.0)
    if waited and accuracy <= record.get("luck", 0.0):
        found["chance"] = (
            f"The validation accuracy, {accuracy:.1%}, is not above that of guessing the most "
            f"frequent class: try {slower}, or look whether the labels are right"
        )
    return found


def new(history: Sequence[Mapping[str, Any]], config: Config) -> list[str]:
    """The alarms that the last epoch raises and the one before did not."""
    before = raised(history[-2], config) if len(history) > 1 else {}
    return [text for name, text in raised(history[-1], config).items() if name not in before]


def summarize(history: Sequence[Mapping[str, Any]], config: Config) -> list[str] | None:
    """All alarms of a run, each as it was last raised, and in which epochs.

    Args:
        history: Records of the epochs.
        config: Of the run.

    Returns:
        A text for each; None where nothing was measured, so that nothing can be said.

    Example:
        >>> summarize([{"epoch": 1, "luck": 0.1, "val_accuracy": 0.9}], Config())
        []
    """
    if not any("luck" in record for record in history):
        return None
    texts: dict[str, str] = {}
    epochs: dict[str, list[int]] = {}
    for index, record in enumerate(history):
        for name, text in raised(record, config).items():
            texts[name] = text
            epochs.setdefault(name, []).append(record.get("epoch", index + 1))
    last = history[-1].get("epoch", len(history))
    said = []
    for name, text in texts.items():
        first, final = epochs[name][0], epochs[name][-1]
        when = f"epoch {first}" if first == final else f"epochs {first} to {final}"
        said.append(f"{text} ({when}{'' if final == last else ', not since'}).")
    return said
