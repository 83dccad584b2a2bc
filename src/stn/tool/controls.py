"""Which runs may stand beside a run as its control, and in what else they differ."""

from __future__ import annotations

from typing import Any

from stn.tool import pages, runs
from stn.tool.config import UserError

SAME = ("task", "data", "image_size", "color", "distort", "seed")
"""What decides which test images there are, and what is to be told apart."""

# What says nothing about training, or only about the layer that the control has not.
_UNIMPORTANT = {
    *("recipe", "data_dir", "backend", "tensorboard", "deterministic", "steps_per_execution"),
    *("transform", "heads", "initialization", "iterations", "localization_size", "bounds"),
    *("output_size", "sampler", "padding", "pooling", "identity_penalty", "frame_penalty"),
    *("localization_rate", "gradient_clip", "hold_epochs"),
}


def check(run: runs.Run, control: runs.Run) -> None:
    """Make sure that a run may be called the control of another.

    Args:
        run: The run with a transformer. It need not be finished.
        control: A finished run without, tested on the same images.

    Raises:
        UserError: If it is no control, not finished, or was tested on other images.

    Example:
        >>> check(Run.open("runs/affine"), Run.open("runs/control"))  # doctest: +SKIP
    """
    name = str(control.path)
    if run.config.transform == "none":
        raise UserError(
            f"Expected a run with a transformer beside a control. Received: {str(run.path)!r}, "
            "which has none; leave out --control"
        )
    own, other = run.config.model_dump(), control.config.model_dump()
    if other["transform"] != "none":
        raise UserError(
            "Expected as control a run without a transformer. Received: "
            f"{name!r} with transform={other['transform']!r}; train one with --transform none"
        )
    if not control.metrics_file.exists():
        raise UserError(
            f"Expected as control a finished run. Received: {name!r}, which has no results on test "
            f"images yet; finish it with: stn train --resume {control.path}"
        )
    unlike = [
        f"{key}={pages.plain(other[key])} (the run has {pages.plain(own[key])})"
        for key in SAME
        if own[key] != other[key]
    ]
    for label, ours, theirs in _facts(run, control):
        if ours is not None and theirs is not None and ours != theirs:
            unlike.append(f"other {label}")
    if unlike:
        raise UserError(
            "Expected as control a run on the same data, classes, distortion and test images. "
            f"Received: {name!r} with {', '.join(unlike)}; train one with the options of the run "
            "and --transform none"
        )


def _facts(run: runs.Run, control: runs.Run) -> list[tuple[str, Any, Any]]:
    """What is known of the data of both beyond their configurations."""
    found = []
    for one in (run, control):
        dataset = one.dataset if one.dataset_file.exists() else {}
        test = one.metrics.get("test") or {}
        per_class = test.get("per_class") or {}
        counts = {key: record.get("count") for key, record in per_class.items()} or None
        names = dataset.get("class_names") or test.get("class_names")
        found.append((names, dataset.get("input_shape"), counts))
    labels = ("classes", "image sizes", "test images")
    return [(label, *values) for label, *values in zip(labels, *found, strict=True)]


def differences(run: runs.Run, control: runs.Run) -> list[str]:
    """In what a control differs from a run besides the layer, in a few words each.

    Args:
        run: As for `check`.
        control: As for `check`.

    Returns:
        Nothing if it was trained alike. Parameters count if they differ by more than 5 %.
    """
    own, other = run.config.model_dump(), control.config.model_dump()
    said = [
        f"{key.replace('_', ' ')}: {pages.plain(own[key])} here, {pages.plain(other[key])} there"
        for key in own
        if own[key] != other[key] and key not in _UNIMPORTANT
    ]
    metrics = [one.metrics for one in (run, control)]
    checked = (("epochs", "epochs trained", 0.0), ("parameters", "parameters", 0.05))
    for key, label, tolerance in checked:
        ours, theirs = (one.get(key) for one in metrics)
        if not (runs.is_number(ours) and runs.is_number(theirs)):
            continue
        if key == "epochs" and own["epochs"] != other["epochs"]:
            continue  # already said
        if abs(ours - theirs) > tolerance * ours:
            said.append(f"{label}: {ours:,} here, {theirs:,} there")
    return said
