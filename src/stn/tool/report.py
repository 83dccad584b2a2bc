"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from stn.tool import alarms, comparison, controls, films, pages, plots, runs, walls
from stn.tool.config import Config

FILM_BYTES = 1_200_000  # of the film inside the page, before base64 adds a third
SHOTS_BYTES = 1_200_000  # of the pictures behind the slider, likewise
WALL_BYTES = 700_000  # of the test images and of the worst mistakes together, in base64
SHOTS = 30
PAIRS = 12  # of classes that are confused


def write_report(
    run: runs.Run | str | os.PathLike[str],
    *,
    control: runs.Run | str | os.PathLike[str] | None = None,
) -> Path:
    """Write a run's report: one HTML page with everything in it, readable offline.

    A run that is going on or was interrupted gets a page too; it says what is not there yet.

    Args:
        run: A run, or its folder. Of its files all but its configuration, its environment and, once
            it is finished, what is known of its data may be missing.
        control: A finished run without a transformer on the same test images, to put its numbers
            beside; by default that of the run's sweeps, if there is one.

    Returns:
        The path of the page, `run.report_file`.

    Raises:
        UserError: If this is not a run, one of its JSON files is damaged, or the control is none.

    Example:
        >>> write_report(Run.open("runs/affine"))  # doctest: +SKIP
        PosixPath('runs/affine/report.html')
    """
    run = runs.Run.open(run)
    runs.write_text(run.report_file, render(run, control=control))
    return run.report_file


def render(
    run: runs.Run,
    *,
    control: runs.Run | str | os.PathLike[str] | None = None,
    watched: str = "",
) -> str:
    """The page of `write_report`.

    Args:
        run: As there, opened.
        control: As there.
        watched: The state of the run, as a server calls it that has the page at `/` and answers
            `/state` with it: the page loads itself again when that has changed.
    """
    control = None if control is None else runs.Run.open(control)
    return pages.render("report.html", _page(run, control) | {"watched": watched})


def _page(run: runs.Run, control: runs.Run | None) -> dict[str, Any]:
    """Everything the template shows, as plain texts and numbers."""
    config, history, metrics = run.config, run.history, run.metrics
    environment = run.environment if run.environment_file.exists() else {}
    test = metrics.get("test") or {}
    names = [str(name) for name in test.get("class_names") or []]
    confusion = test.get("confusion") if names else None
    kept_epoch = comparison.kept_epoch(config, history, metrics)
    own = comparison.summarize(run)
    summary = run.summary_file
    film, film_note = _film_picture(run)
    sweeps = [_read_sweep(run, kind, file) for kind, file in run.sweeps().items()]
    # Those first that a transformer can take back.
    sweeps.sort(key=lambda sweep: sweep.get("error_unit") is None)
    beside = _control(run, control, sweeps)
    fields = type(config).model_fields
    return {
        "name": run.path.resolve().name,
        "sentence": _sentence(config, metrics, names),
        "notice": _notice(config, history, metrics),
        "headline": _headline(config, history, metrics, own, kept_epoch, beside),
        "control": _beside(own, beside),
        "differences": beside["differences"] if beside else [],
        "transformed": config.transform != "none",
        "heads": config.heads,
        "task": config.task,
        "film": film,
        "film_note": film_note,
        "shots": _shots(run.frames()),
        "wall": _wall(run),
        "averages": pages.embed_file(run.averages_file),
        "theta": pages.embed_file(run.theta_file, scale=2),
        "congealing": _congealing(metrics),
        "sweeps": [
            {
                "kind": sweep["kind"],
                "plot": _with_narrow(
                    pages.embed_file(run.sweep_file(sweep["kind"]).with_suffix(".png"), scale=2),
                    plots.draw_sweep(sweep, narrow=True),
                ),
                "aligned": any("alignment_error" in one["points"][0] for one in sweep["runs"]),
                "words": _sweep_in_words(sweep),
            }
            for sweep in sweeps
        ],
        # Drawn anew, not read: after an interruption the files may be older than the history.
        "curves": _with_narrow(
            pages.embed(plots.draw_curves(history, kept_epoch), "image/png", scale=2),
            plots.draw_curves(history, kept_epoch, narrow=True),
        )
        if history
        else None,
        "watched_over": _watched_over(history),
        "alarms": alarms.summarize(history, config),
        "classes": _classes(test),
        "pairs": _pairs(confusion, names),
        "confusion": pages.embed(plots.draw_confusion(confusion, names), "image/png", scale=2)
        if confusion
        else None,
        "config": [
            (key, pages.plain(value), (fields[key].description or "").replace("`", ""))
            for key, value in config.model_dump().items()
        ],
        "environment": [
            (_LABELS.get(key, key.replace("_", " ")), pages.plain(value))
            for key, value in environment.items()
            if key not in ("format", "command")
        ],
        "summary": summary.read_text(encoding="utf-8") if summary.exists() else "",
        "command": shlex.join(config.to_command()),
    }


def _watched_over(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    wide, narrow = plots.draw_watched(history), plots.draw_watched(history, narrow=True)
    if wide is None or narrow is None:
        return None
    return _with_narrow(pages.embed(wide, "image/png", scale=2), narrow)


def _with_narrow(picture: dict[str, Any] | None, narrow: bytes) -> dict[str, Any] | None:
    """A picture with another one that narrow screens show instead."""
    return picture and picture | {"narrow": pages.embed(narrow, "image/png", scale=2)}


_LABELS = {
    "python": "Python",
    "keras": "Keras",
    "backend_version": "backend version",
    "cpu": "CPU",
    "memory_gib": "memory (GiB)",
}


_DISTORTIONS = {
    "R": "turned at random",
    "RTS": "turned, scaled and shifted at random",
    "P": "shrunk a little, their corners moved at random",
    "E": "shrunk a little and bent at random",
    "T": "placed at random on a larger canvas",
    "TC": "placed at random on a larger canvas among clutter",
}


def _sentence(config: Config, metrics: dict[str, Any], names: list[str]) -> str:
    """What was trained on what, in plain words."""
    if config.task == "colocalization":
        clutter = " among patches of other images" if config.distort == "TC" else ""
        return (
            f"A window learned to find what {config.batch_size} canvases of the {config.data} data "
            f"have in common, without labels or boxes: the class {config.object_class}, placed at "
            f"random{clutter}."
        )
    layer = "without a"
    if config.transform != "none":
        article = "an" if config.transform.startswith(("a", "e", "i", "o", "u")) else "a"
        layer = f"with {article} {config.transform}"
    count = (metrics.get("train") or {}).get("count")
    images = f"{count:,} images" if runs.is_number(count) else "images"
    text = f"The {config.model} model {layer} spatial transformer learned from {images}"
    text += f" of the {config.data} data"
    if config.task == "addition":
        text += " to add two digits, each in an image of its own"
    elif names:
        text += f" to tell {len(names)} classes apart"
    if config.distort in _DISTORTIONS:
        text += f"; the images are {_DISTORTIONS[config.distort]}"
    return text + "."


def _notice(config: Config, history: list[dict[str, Any]], metrics: dict[str, Any]) -> str:
    if metrics:
        return ""
    done = f"{len(history)} of {config.epochs} epochs are" if history else "No epoch is"
    missing = "" if config.task == "colocalization" else "; there are no results on test images yet"
    return f"Training has not finished. {done} done{missing}."


def _headline(
    config: Config,
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
    own: dict[str, Any],
    kept_epoch: int | None,
    control: dict[str, Any] | None,
) -> list[dict[str, str]]:
    """The numbers at the top; the first one is shown large."""
    numbers: list[dict[str, str]] = []

    def add(label: str, value: str, note: str = "") -> None:
        numbers.append({"label": label, "value": value, "note": note})

    if config.task == "colocalization":
        last = metrics or (history[-1] if history else {})
        count = last.get("count", config.batch_size)
        share = last.get("accuracy")
        value = f"{share:.0%}" if runs.is_number(share) else "—"
        add("Found", value, f"of {count} canvases, overlap above 0.5")
        overlap = last.get("mean_iou")
        value = f"{overlap:.2f}" if runs.is_number(overlap) else "—"
        add("Mean overlap", value, "intersection over union")
    elif metrics:
        accuracy, count = own["accuracy"], (metrics.get("test") or {}).get("count")
        note = ""
        if accuracy is not None and runs.is_number(count):
            note = f"{round(accuracy * count):,} of {count:,} images right"
        add("Test accuracy", pages.percent(accuracy), note)
        if control is not None and control["accuracy"] is not None:
            note = f"run {control['name']}"
            if accuracy is not None:
                gain = 100 * (accuracy - control["accuracy"])
                note = f"{gain:+.1f} points with it · {note}"
            if control["differences"]:
                note += ", which differs in more"
            add("Without the transformer", pages.percent(control["accuracy"]), note)
        if own["alignment_error"] is not None:
            note = "median"
            turned = metrics["alignment"].get("turned")
            if runs.is_number(turned):
                note += f"; images were turned by {turned:.0f}°"
            add("Turn that remains", f"{own['alignment_error']:.1f}°", note)
    if own["validation_accuracy"] is not None:
        note = f"after epoch {kept_epoch}, which was kept" if kept_epoch else ""
        add("Validation accuracy", pages.percent(own["validation_accuracy"]), note)
    note = "stopped early" if metrics.get("stopped_early") else ""
    if kept_epoch:
        note = f"{note}; kept: {kept_epoch}" if note else f"kept: {kept_epoch}"
    done = own["epochs"]
    add("Epochs", f"{done}" if done == config.epochs else f"{done} of {config.epochs}", note)
    if own["parameters"] is not None:
        add("Parameters", f"{own['parameters']:,}")
    if own["train_seconds"] is not None:
        total, note = metrics.get("total_seconds"), ""
        # Of a resumed run, the total is that of its last process.
        if runs.is_number(total) and total >= own["train_seconds"]:
            note = f"{pages.duration(total)} in all"
        add("Training time", pages.duration(own["train_seconds"]), note)
    if own["images_per_second"] is not None:
        speed = f"{own['images_per_second']:,.0f} images/s"
        add("Speed", speed, "median of the epochs")
    return numbers


def _control(
    run: runs.Run, control: runs.Run | None, sweeps: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The numbers of a run without transformer: the one given, or that of a sweep."""
    if control is not None:
        controls.check(run, control)
        differences = controls.differences(run, control)
        return comparison.summarize(control) | {"differences": differences}
    found = [
        one
        for sweep in sweeps
        for one in sweep["runs"][1:]
        if one.get("transform") == "none" and one.get("finished") and "differences" in one
    ]
    return found[-1] if found else None


def _beside(own: dict[str, Any], control: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """A table of the numbers of a run and of its control."""
    if control is None:
        return []
    return [
        (label, comparison.write(key, own[key]), comparison.write(key, control.get(key)))
        for key, (label, _) in comparison.COLUMNS.items()
        if own[key] is not None and control.get(key) is not None
    ]


def _wall(run: runs.Run) -> list[dict[str, Any]]:
    """The test images one by one, and the worst mistakes; as many as there is room for."""
    shown = []
    for worst in (False, True):
        left, cards = WALL_BYTES // 2, []
        for card in walls.cards(run, worst=worst):
            left -= pages.size_of([card])
            if left < 0:
                break
            cards.append(card)
        classes = len({card["true"] for card in cards})
        everything = len(run.dataset["class_names"]) if cards else 0
        title = (
            "The worst mistakes first"
            if worst
            else "Images of every class"
            if classes == everything
            else f"Images of {classes} of the {everything} classes"
        )
        shown.append({"worst": worst, "cards": cards, "title": title})
    return shown if shown[0]["cards"] else []


def _read_sweep(run: runs.Run, kind: str, file: Path) -> dict[str, Any]:
    sweep = runs.read_json(file)
    again = f"type `stn evaluate {shlex.quote(str(run.path))} --sweep {kind}`, or delete it"
    with runs.reading(file, remedy=again):
        _sweep_in_words(sweep)
        if sweep["kind"] != kind:
            raise ValueError(f"it is of kind {sweep['kind']!r}")
    return sweep


def _sweep_in_words(sweep: dict[str, Any]) -> list[str]:
    """What the curves of a sweep show, a sentence for each run."""
    said = []
    for one in sweep["runs"]:
        first, last = one["points"][0], one["points"][-1]
        weak, strong = (_strength(sweep["kind"], point["strength"]) for point in (first, last))
        text = f"{one['name']} recognizes {pages.percent(first['accuracy'])} {weak} and "
        text += f"{pages.percent(last['accuracy'])} {strong}"
        if "alignment_error" in last:
            remains = _AMOUNTS.get(sweep["kind"], "{:.3g}").format(last["alignment_error"])
            text += f", of which the layer leaves {remains}"
        said.append(f"{text}.")
    return said


_STRENGTHS = {
    "rotation": "of images turned by {:g}°",
    "scale": "of images magnified {:g} times",
    "translation": "of images moved by {:.0%} of their size",
    "shear": "of images sheared by {:g}",
    "noise": "of images under noise of {:g}",
    "occlusion": "of images behind a square of {:.0%} of their side",
}

_AMOUNTS = {"rotation": "{:.3g}°", "scale": "a factor of {:.3g}", "translation": "{:.1%}"}


def _strength(kind: str, strength: float) -> str:
    return _STRENGTHS.get(kind, "at {:g}").format(strength)


def _classes(test: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy per class, the worst first; classes without test images come last."""
    rows = []
    for name, record in (test.get("per_class") or {}).items():
        accuracy = record.get("accuracy")
        known = runs.is_number(accuracy)
        rows.append(
            {
                "name": name,
                "percent": round(100 * accuracy, 1) if known else 0,
                "text": pages.percent(accuracy),
                "count": record.get("count", 0),
                "order": (accuracy if known else 2.0, name),
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def _pairs(confusion: Any, names: list[str]) -> list[dict[str, str]]:
    """The most frequent confusions of one class with another."""
    if not confusion:
        return []
    counts = np.asarray(confusion, np.float64)
    errors = counts * (1 - np.eye(len(counts)))
    rows = []
    for flat in np.argsort(-errors, axis=None, kind="stable")[:PAIRS]:
        true, predicted = divmod(int(flat), len(counts))
        if errors[true, predicted] > 0:
            share = errors[true, predicted] / counts[true].sum()
            rows.append(
                {
                    "true": names[true],
                    "predicted": names[predicted],
                    "count": f"{errors[true, predicted]:,.0f}",
                    "share": pages.percent(float(share)),
                }
            )
    return rows


def _film_picture(run: runs.Run) -> tuple[dict[str, Any] | None, str]:
    """The film for the page, made of fewer pictures if it is too large, and what to say of it."""
    if not run.film_file.exists():
        return None, "The film is made when training ends."
    film = run.film_file.read_bytes()
    frames, step = run.frames(), 1
    while len(film) > FILM_BYTES and len(frames) > 2 * step:
        step *= 2
        film = films.film_bytes(_thin(frames, math.ceil(len(frames) / step)), colors=64)
    if len(film) > FILM_BYTES:
        return None, f"The film is too large for this page; it is in {run.film_file.name}."
    note = f"{run.film_file.name} has all {len(frames)} pictures." if step > 1 else ""
    with runs.reading(run.film_file):
        return pages.embed(film, "image/gif"), note


def _shots(frames: list[Path]) -> list[dict[str, Any]]:
    """The pictures behind the slider, few and small enough, always with the first and the last."""
    most = SHOTS
    while frames:
        chosen = _thin(frames, most)
        shots = [pages.embed_picture(image) for image in films.indexed(chosen, 128)]
        if pages.size_of(shots) <= SHOTS_BYTES * 4 / 3 or most <= 2:
            return [
                shot | {"epoch": runs.epoch_of(frame)}
                for shot, frame in zip(shots, chosen, strict=True)
            ]
        most = max(2, min(most, len(frames)) // 2)
    return []


def _thin(frames: list[Path], most: int) -> list[Path]:
    """At most so many of the pictures, evenly spread, with the first and the last."""
    if len(frames) <= most:
        return frames
    return [frames[i] for i in np.linspace(0, len(frames) - 1, max(2, most)).round().astype(int)]


def _congealing(metrics: dict[str, Any]) -> str:
    """What straightening does to the averages, in a sentence."""
    found = metrics.get("congealing") or {}
    before, after = (found.get(key) or {} for key in ("inputs", "outputs"))
    sharp = [one.get("sharpness") for one in (before, after)]
    spread = [one.get("within_class_variance") for one in (before, after)]
    if not all(map(runs.is_number, sharp + spread)):
        return ""
    text = (
        f"If all images of a class were the same, their average would be as strong as each: 100%. "
        f"Here it has {pages.percent(sharp[0])} of their strength before straightening, and "
        f"{pages.percent(sharp[1])} after."
    )
    if spread[0]:
        change = spread[1] / spread[0] - 1
        text += (
            f" The variance within a class is {abs(change):.0%} "
            f"{'lower' if change < 0 else 'higher'} "
            f"({spread[0]:.4f} before, {spread[1]:.4f} after)."
        )
    return text
