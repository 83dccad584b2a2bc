"""Robustness: accuracy, and what the transformer takes back, over the strength of a disturbance."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from stn import grids
from stn.tool import alignment, comparison, controls, evaluation, examples, plots, runs, tasks
from stn.tool.config import Config, Stream, UserError
from stn.tool.data import distortions

KINDS: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "rotation": ("degrees", 0.0, (0, 15, 30, 45, 60, 75, 90)),
    "scale": ("magnification", 1.0, (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5)),
    "translation": ("fraction of the image", 0.0, (0, 0.05, 0.1, 0.15, 0.2, 0.3)),
    "shear": ("tangent", 0.0, (0, 0.1, 0.2, 0.3, 0.4, 0.6)),
    "noise": ("standard deviation, of white", 0.0, (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    "occlusion": ("side of a square, of the image", 0.0, (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
}
"""By name: the unit of the strength, the strength that changes nothing, the strengths tried."""

ERRORS = {
    "rotation": "degrees",
    "scale": "factor",
    "translation": "fraction of the image",
    "shear": "tangent",
}
"""The unit of the alignment error, for disturbances that a transformer can take back."""

COUNT = 2000
"""Images to use, at most."""


def sweep(
    run: runs.Run | str | os.PathLike[str],
    kind: str,
    *,
    control: runs.Run | str | os.PathLike[str] | None = None,
    strengths: Sequence[float] | None = None,
    count: int = COUNT,
    backend: str | None = None,
) -> dict[str, Any]:
    """Test a run on images that are disturbed more and more, and on nothing else.

    The images are test images without the distortion of the run, in the middle of its canvas. The
    alignment error says how much of a disturbance is left after the transformer, compared with
    what it does to the same image undisturbed: 0 if it takes back all of it, the disturbance
    itself if it ignores it. Turns and shifts go either way, at random. If the run was trained on
    distorted images, which are all blurred a little by resampling, every image is first shifted by
    up to half a pixel, so that undisturbed ones are not sharper than any the model has seen.

    Writes `sweep-KIND.json`, `.csv` and `.png` into the run's folder.

    Args:
        run: A run, or its folder.
        kind: One of `KINDS`.
        control: A finished run without a transformer on the same test images, to compare with.
        strengths: Other strengths than the usual ones, in the unit of `KINDS`.
        count: Test images to use, at most; chosen by the seed, the same for all strengths.
        backend: Another backend than the run's.

    Returns:
        `kind`, `unit`, `error_unit`, `count`, `runs`: for each run its `points` and what
        `stn.tool.comparison.summarize` says of it, and for the control its `differences` from the
        run besides the layer, as from `stn.tool.controls`. A point has `strength`, `accuracy` and,
        for a transformer, `alignment_error` (the median), each with `_low` and `_high`, a 95 %
        bootstrap interval over the images.

    Raises:
        UserError: If there is no such kind, or a run cannot be used.

    Example:
        >>> sweep("runs/affine", "rotation")["runs"][0]["points"][0]  # doctest: +SKIP
        {'strength': 0, 'accuracy': 0.98, ...}
    """
    if kind not in KINDS:
        raise UserError(f"Expected sweep to be one of {tuple(KINDS)}. Received: {kind!r}")
    unit, neutral, usual = KINDS[kind]
    tried = [float(s) for s in (usual if strengths is None else strengths)]
    if not tried or not all(np.isfinite(tried)) or (kind == "scale" and min(tried) <= 0):
        raise UserError(f"Expected strengths in {unit}. Received: {strengths!r}")
    opened = [runs.Run.open(one) for one in (run, control) if one is not None]
    evaluation.check_task(opened[0], "to disturb its images", "classification")
    for one in opened[1:]:
        controls.check(opened[0], one)
    runs.check_writable(opened[0].path)
    results: dict[str, Any] = {
        "kind": kind,
        "unit": unit,
        "error_unit": ERRORS.get(kind),
        "count": 0,
        "runs": [],
    }
    for one in opened:
        # All on one backend: a process has no other.
        reader = _Reader(one, kind, count, backend or str(opened[0].config.backend))
        results["count"] = len(reader.labels)
        _, still = reader.read(neutral)
        points = []
        for strength in tried:
            hits, seen = reader.read(strength)
            point = {"strength": strength} | _interval("accuracy", hits, np.mean)
            if seen is not None and still is not None and kind in ERRORS:
                left = _left_over(kind, seen, still, reader.size)
                point |= _interval("alignment_error", left, np.median)
            points.append(point)
        summary = comparison.summarize(one) | {"points": points}
        if one is not opened[0]:
            summary["differences"] = controls.differences(opened[0], one)
        results["runs"].append(summary)
    _write(opened[0], results)
    return results


def turns_left_over(
    probe: examples.Probe,
    config: Config,
    images: np.ndarray,
    background: Sequence[float] | None = None,
) -> dict[str, float] | None:
    """How much of the turns of a run's own distortion is left after its transformer.

    Args:
        probe: Of a classifier with a transformer.
        config: Of the run; its distortion is drawn anew, from the seed.
        images: uint8 `(count, height, width, channels)`, undistorted.
        background: Of the training images; see `stn.tool.data.distortions.Distortion.on`.

    Returns:
        In degrees: `turned`, the median of the turns, and `alignment_error`, the median of what is
        left of them, with a 95 % bootstrap interval, `_low` and `_high`; as in `sweep`. None where
        the distortion does not turn images, or does more to them than an affine map can say.
    """
    distortion = tasks.distortion_of(config)
    if not distortion.angle or distortion.families != ("affine",) or distortion.apart:
        return None
    rng = np.random.default_rng((config.seed, Stream.SWEEP))
    images = images[rng.permutation(len(images))[:COUNT]]
    size = images.shape[1:3]
    canvas = distortion.output_size(size)
    params = distortion.params(len(images), size, rng)
    back = np.tile(np.eye(3), (len(images), 1, 1))
    back[:, :2] = params.reshape(-1, 2, 3)
    to_canvas, to_image = _in_pixels(canvas), _in_pixels(size)
    back = to_image @ back @ np.linalg.inv(to_canvas)
    turned = distortions.warp_images(images, params, canvas, background)
    upright, still = disturb(images, "rotation", 0.0, canvas, rng, background, jitter=0.5)
    seen, unturned = (
        disturbed @ _seen(probe, one)[1] for one, disturbed in ((turned, back), (upright, still))
    )
    left = _left_over("rotation", seen, unturned, size)
    angles = np.abs(alignment.decompose(back, size)["angle"])
    return {"turned": round(float(np.median(angles)), 6)} | _interval(
        "alignment_error", left, np.median
    )


class _Reader:
    """A model, and the same test images disturbed as strongly as asked."""

    def __init__(self, run: runs.Run, kind: str, count: int, backend: str):
        config = run.config
        model = evaluation.load_model(run, backend)
        channels = run.dataset["image_shape"][-1]
        self._background = run.dataset.get("background_color")
        tasks.check_unseen(config, run.dataset)
        _, test = tasks.load_split(config, "test", channels=channels)
        rng = np.random.default_rng((config.seed, Stream.SWEEP))
        chosen = rng.permutation(len(test.labels))[:count]
        self.labels, self._images = test.labels[chosen], test.images[chosen]
        self._kind, self._seed = kind, config.seed
        self._output_size = tuple(model.input_shape[1:3])
        self._jitter = 0.0 if config.distort in (None, "none") else 0.5
        self.size = self._images.shape[1:3]
        self._probe = examples.Probe(model, config.transform)

    def read(self, strength: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Which images are recognized, and the maps from the outputs to the undisturbed images."""
        # The same directions and places for all strengths.
        rng = np.random.default_rng((self._seed, Stream.SWEEP, 1))
        images, disturbed = disturb(
            self._images,
            self._kind,
            strength,
            self._output_size,
            rng,
            self._background,
            jitter=self._jitter,
        )
        guesses, maps = _seen(self._probe, images)
        hits = (guesses == self.labels).astype("float64")
        return hits, None if maps is None else disturbed @ maps


def _seen(probe: examples.Probe, images: np.ndarray) -> tuple[np.ndarray, Any]:
    """What is recognized, and the map of each image in pixels; None without a transformer."""
    probabilities, heads = zip(*probe.parts(images), strict=True)
    guesses = np.concatenate(probabilities).argmax(-1)
    if not heads[0]:
        return guesses, None
    grid = np.concatenate([part[0][2] for part in heads])  # of the first head
    return guesses, alignment.affine_part(grid, images.shape[1:3])[0]


def disturb(
    images: np.ndarray,
    kind: str,
    strength: float,
    output_size: tuple[int, int],
    rng: np.random.Generator,
    background: Sequence[float] | None = None,
    *,
    jitter: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Disturb images, all as strongly, and put them in the middle of a canvas.

    Args:
        images: uint8 `(count, height, width, channels)`.
        kind: One of `KINDS`.
        strength: In the unit of `KINDS`.
        output_size: `(height, width)` of the canvas.
        rng: Decides on signs, directions and places.
        background: What is beyond the images, and hides parts of them; black if None. See
            `stn.tool.data.distortions.Distortion.on`.
        jitter: Largest random shift before all else, in pixels.

    Returns:
        uint8 `(count, *output_size, channels)`, and the maps `(count, 3, 3)` from the canvas back
        to the image, in pixels about the centers.

    Example:
        >>> image = np.zeros((1, 4, 4, 1), "uint8")
        >>> _, back = disturb(image, "scale", 2.0, (4, 4), np.random.default_rng(0))
        >>> back[0].tolist()
        [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    count, size = len(images), images.shape[1:3]
    sign = rng.choice([-1.0, 1.0], count)
    direction = rng.uniform(-np.pi, np.pi, count)
    place = rng.uniform(0, 1, (count, 2))
    shift = np.tile(np.eye(3), (count, 1, 1))
    shift[:, :2, 2] = rng.uniform(-jitter, jitter, (count, 2))
    image = np.tile(np.eye(3), (count, 1, 1))  # from image to canvas
    if kind == "rotation":
        angle = np.deg2rad(strength) * sign
        cos, sin = np.cos(angle), np.sin(angle)
        image[:, :2, :2] = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    elif kind == "scale":
        image[:, :2, :2] *= strength
    elif kind == "shear":
        image[:, 0, 1] = strength * sign
    elif kind == "translation":
        image[:, 0, 2] = strength * size[1] * np.cos(direction)
        image[:, 1, 2] = strength * size[0] * np.sin(direction)
    back = np.linalg.inv(image @ shift)
    to_canvas, to_image = _in_pixels(output_size), _in_pixels(size)
    params = (np.linalg.inv(to_image) @ back @ to_canvas)[:, :2].reshape(count, 6)
    params = params.astype("float32")
    canvas = distortions.warp_images(images, params, output_size, background)
    if kind == "noise" and strength:
        noisy = canvas + rng.normal(0, 255 * strength, canvas.shape)
        canvas = np.clip(np.rint(noisy), 0, 255).astype("uint8")
    if kind == "occlusion" and strength:
        side = [round(strength * n) for n in size]
        for one, at in zip(canvas, place, strict=True):
            # Somewhere on the image, which is in the middle of the canvas.
            top, left = (
                round((n - m) / 2 + share * (m - k))
                for n, m, k, share in zip(output_size, size, side, at, strict=True)
            )
            one[top : top + side[0], left : left + side[1]] = background or 0
    return canvas, back


def _left_over(kind: str, seen: np.ndarray, still: np.ndarray, size: Any) -> np.ndarray:
    """What is left of a disturbance, in the unit of `ERRORS`, for each image."""
    about = alignment.decompose(seen @ np.linalg.pinv(still), size)
    if kind == "rotation":
        return np.abs(about["angle"])
    if kind == "scale":
        return np.exp(np.abs(np.log(np.abs(about["zoom_x"] * about["zoom_y"])) / 2))
    if kind == "shear":
        return np.abs(about["shear"])
    return np.hypot(about["right"], about["down"])


def _interval(name: str, values: np.ndarray, statistic: Any) -> dict[str, float]:
    """A statistic and its 95 % bootstrap interval over the images."""
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(len(values), size=(400, len(values)))]
    low, high = np.quantile(statistic(drawn, axis=1), [0.025, 0.975])
    found = {name: statistic(values), f"{name}_low": low, f"{name}_high": high}
    return {key: round(float(value), 6) for key, value in found.items()}


def _in_pixels(size: tuple[int, int]) -> np.ndarray:
    """The matrix from normalized coordinates of an image to pixels around its middle."""
    return np.diag([*grids.extents(size, False), 1.0])


def _write(run: runs.Run, results: dict[str, Any]) -> None:
    stem = run.sweep_file(results["kind"])
    runs.write_json(stem.with_suffix(".json"), results)
    rows = [{"run": one["name"], **point} for one in results["runs"] for point in one["points"]]
    with runs.atomic(stem.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    runs.write_bytes(stem.with_suffix(".png"), plots.draw_sweep(results))
