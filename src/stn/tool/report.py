"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stn.tool import pictures, plots, runs

PAGE_BYTES = 5_000_000
FILM_BYTES = 1_600_000  # of the film inside the page, before base64 adds a third
SHOTS_BYTES = 1_600_000  # of the pictures behind the slider, likewise
SHOTS = 30


def write_report(run: runs.Run | str | os.PathLike[str]) -> Path:
    """Write a run's report: one HTML page with everything in it, readable offline.

    A run that was interrupted gets a page too; it says what is not there yet.

    Args:
        run: A run, or its folder. Its configuration must be there; everything else may be missing.

    Returns:
        The path of the page, `run.report_file`.

    Raises:
        UserError: If this is not a run, or one of its JSON files is damaged.

    Example:
        >>> write_report(Run.open("runs/affine"))  # doctest: +SKIP
        PosixPath('runs/affine/report.html')
    """
    import jinja2

    run = run if isinstance(run, runs.Run) else runs.Run.open(run)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html").render(_page(run))
    with runs.atomic(run.report_file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run.report_file


def _page(run: runs.Run) -> dict[str, Any]:
    """Everything the template shows, as plain texts and numbers."""
    config = run.config.model_dump()
    fields = getattr(type(run.config), "model_fields", {})
    history = run.history
    metrics = run.metrics if run.metrics_file.exists() else {}
    environment = run.environment if run.environment_file.exists() else {}
    test = metrics.get("test") or {}
    names = [str(name) for name in test.get("class_names") or []]
    confusion = test.get("confusion") if names else None
    best_epoch = metrics.get("best_epoch") or _best_epoch(history)
    summary = run.summary_file
    film, film_note = _film_picture(run)
    return {
        "name": run.path.resolve().name,
        "sentence": _sentence(config, metrics, names),
        "notice": _notice(config, history, metrics),
        "headline": _headline(config, history, metrics, best_epoch),
        "transformed": _transform(config) is not None,
        "film": film,
        "film_note": film_note,
        "shots": _shots(run.frames()),
        "averages": _embed_file(run.averages_file),
        "theta": _embed_file(run.theta_file, scale=2),
        "congealing": _congealing(metrics),
        "sweeps": [
            (file.stem.removeprefix("sweep-"), _embed_file(file, scale=2))
            for file in sorted(run.path.glob("sweep-*.png"))
        ],
        # Drawn anew, not read: after an interruption the files may be older than the history.
        "curves": _embed_plot(plots.curves_bytes(history, best_epoch)) if history else None,
        "classes": _classes(test),
        "pairs": _pairs(confusion, names),
        "confusion": _embed_plot(plots.confusion_bytes(confusion, names)) if confusion else None,
        "config": [
            (key, _plain(value), _description(fields.get(key))) for key, value in config.items()
        ],
        "environment": [
            (_LABELS.get(key, key.replace("_", " ")), _plain(value))
            for key, value in environment.items()
            if key not in ("format", "command")
        ],
        "summary": summary.read_text(encoding="utf-8") if summary.exists() else "",
        "command": environment.get("command") or "",
    }


def _description(field: Any) -> str:
    return ((field and field.description) or "").replace("`", "")


_LABELS = {
    "python": "Python",
    "keras": "Keras",
    "backend_version": "backend version",
    "cpu": "CPU",
    "memory_gib": "memory (GiB)",
}


def _transform(config: dict[str, Any]) -> str | None:
    name = config.get("transform")
    return None if name in (None, "", "none", False) else _plain(name)


_DISTORTIONS = {
    "R": "turned at random",
    "RTS": "turned, scaled and shifted at random",
    "P": "shrunk a little, their corners moved at random",
    "E": "shrunk a little and bent at random",
    "T": "placed at random on a larger canvas",
    "TC": "placed at random on a larger canvas among clutter",
}


def _sentence(config: dict[str, Any], metrics: dict[str, Any], names: list[str]) -> str:
    """What was trained on what, in plain words."""
    transform = _transform(config)
    article = "an" if (transform or "").startswith(("a", "e", "i", "o", "u")) else "a"
    layer = f"with {article} {transform}" if transform else "without a"
    model = _plain(config.get("model", "?"))
    count = (metrics.get("train") or {}).get("count")
    images = f"{count:,} images" if plots.is_number(count) else "images"
    text = f"The {model} model {layer} spatial transformer learned from {images}"
    text += f" of the {_plain(config.get('data', '?'))} data"
    text += f" to tell {len(names)} classes apart" if names else ""
    distort = config.get("distort")
    if distort not in (None, "", "none"):
        how = _DISTORTIONS.get(str(distort), f"distorted ({_plain(distort)})")
        text += f"; the images are {how}"
    return text + "."


def _notice(config: dict[str, Any], history: list[dict[str, Any]], metrics: dict[str, Any]) -> str:
    if metrics:
        return ""
    planned = config.get("epochs")
    of = f" of {planned}" if plots.is_number(planned) else ""
    done = f"{len(history)}{of} epochs are" if history else "No epoch is"
    return f"Training has not finished. {done} done; there are no results on test images yet."


def _best_epoch(history: list[dict[str, Any]]) -> int | None:
    """The epoch that training would keep if it ended now."""
    rated = [
        (record["val_loss"], record.get("epoch", index + 1))
        for index, record in enumerate(history)
        if plots.is_number(record.get("val_loss"))
    ]
    return min(rated)[1] if rated else None


def _headline(
    config: dict[str, Any],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
    best_epoch: int | None,
) -> list[dict[str, str]]:
    """The numbers at the top; the first one is shown large."""
    test, validation = metrics.get("test") or {}, metrics.get("validation") or {}
    numbers: list[dict[str, str]] = []

    def add(label: str, value: str, note: str = "") -> None:
        numbers.append({"label": label, "value": value, "note": note})

    best = next((r for r in history if best_epoch and r.get("epoch") == best_epoch), {})
    validated = validation.get("accuracy", best.get("val_accuracy"))
    if metrics:
        accuracy, count = test.get("accuracy"), test.get("count")
        note = ""
        if plots.is_number(accuracy) and plots.is_number(count):
            note = f"{round(accuracy * count):,} of {count:,} images right"
        add("Test accuracy", _percent(accuracy), note)
        control = metrics.get("control") or {}
        if plots.is_number(control.get("accuracy")):
            note = f"run {control.get('run', '?')}"
            if plots.is_number(accuracy):
                gain = 100 * (accuracy - control["accuracy"])
                note = f"{gain:+.1f} points with it · {note}"
            add("Without the transformer", _percent(control["accuracy"]), note)
    if plots.is_number(validated):
        note = f"after epoch {best_epoch}, the best" if best_epoch else ""
        add("Validation accuracy", _percent(validated), note)
    done, planned = metrics.get("epochs", len(history)), config.get("epochs")
    note = "stopped early" if metrics.get("stopped_early") else ""
    if best_epoch:
        note = f"{note}; best: {best_epoch}" if note else f"best: {best_epoch}"
    short = plots.is_number(planned) and planned != done
    add("Epochs", f"{done} of {planned}" if short else f"{done}", note)
    if plots.is_number(metrics.get("parameters")):
        add("Parameters", f"{metrics['parameters']:,}")
    spent = [r["seconds"] for r in history if plots.is_number(r.get("seconds"))]
    seconds = metrics.get("train_seconds", sum(spent) if spent else None)
    if plots.is_number(seconds):
        total = metrics.get("total_seconds")
        note = f"{_duration(total)} in all" if plots.is_number(total) else ""
        add("Training time", _duration(seconds), note)
    speeds = [
        r["images_per_second"] for r in history if plots.is_number(r.get("images_per_second"))
    ]
    if speeds:
        add("Speed", f"{statistics.median(speeds):,.0f} images/s", "median of the epochs")
    return numbers


def _classes(test: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy per class, the worst first; classes without test images come last."""
    rows = []
    for name, record in (test.get("per_class") or {}).items():
        accuracy = record.get("accuracy")
        known = plots.is_number(accuracy)
        rows.append(
            {
                "name": name,
                "percent": round(100 * accuracy, 1) if known else 0,
                "text": _percent(accuracy),
                "count": record.get("count", 0),
                "order": (accuracy if known else 2.0, name),
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def _pairs(confusion: Any, names: list[str], most: int = 12) -> list[dict[str, str]]:
    """The most frequent confusions of one class with another."""
    if not confusion:
        return []
    counts = np.asarray(confusion, np.float64)
    errors = counts * (1 - np.eye(len(counts)))
    rows = []
    for flat in np.argsort(-errors, axis=None, kind="stable")[:most]:
        true, predicted = divmod(int(flat), len(counts))
        if errors[true, predicted] > 0:
            share = errors[true, predicted] / counts[true].sum()
            rows.append(
                {
                    "true": names[true],
                    "predicted": names[predicted],
                    "count": f"{errors[true, predicted]:,.0f}",
                    "share": _percent(float(share)),
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
        film = pictures.film_bytes(_thin(frames, math.ceil(len(frames) / step)), colors=64)
    if len(film) > FILM_BYTES:
        return None, f"The film is too large for this page; it is in {run.film_file.name}."
    note = f"{run.film_file.name} has all {len(frames)} pictures." if step > 1 else ""
    return _embed(film, "image/gif"), note


def _shots(frames: list[Path]) -> list[dict[str, Any]]:
    """The pictures behind the slider, few and small enough, always with the first and the last."""
    most = SHOTS
    while frames:
        chosen = _thin(frames, most)
        shots = []
        for image in pictures.indexed(chosen, 128):
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            shots.append(buffer.getvalue())
        if sum(map(len, shots)) <= SHOTS_BYTES or most <= 2:
            return [
                _embed(picture, "image/png") | {"epoch": _epoch_of(frame)}
                for picture, frame in zip(shots, chosen, strict=True)
            ]
        most = max(2, min(most, len(frames)) // 2)
    return []


def _thin(frames: list[Path], most: int) -> list[Path]:
    """At most so many of the pictures, evenly spread, with the first and the last."""
    if len(frames) <= most:
        return frames
    return [frames[i] for i in np.linspace(0, len(frames) - 1, max(2, most)).round().astype(int)]


def _epoch_of(frame: Path) -> int:
    return int(re.sub(r"\D", "", frame.stem) or 0)


def _embed_plot(png: bytes) -> dict[str, Any]:
    """A plot has twice the pixels that it takes on the page, for sharp screens."""
    plot = _embed(png, "image/png")
    return plot | {"width": plot["width"] // 2, "height": plot["height"] // 2}


def _embed_file(file: Path, *, scale: int = 1) -> dict[str, Any] | None:
    """A PNG of the run, with few colors, at a fraction of its size; None if it is not there."""
    if not file.exists():
        return None
    with Image.open(file) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    picture = _embed(buffer.getvalue(), "image/png")
    return picture | {key: picture[key] // scale for key in ("width", "height")}


def _congealing(metrics: dict[str, Any]) -> str:
    """What straightening does to the averages, in a sentence."""
    found = metrics.get("congealing") or {}
    before, after = (found.get(key) or {} for key in ("inputs", "outputs"))
    sharp = [one.get("sharpness") for one in (before, after)]
    spread = [one.get("within_class_variance") for one in (before, after)]
    if not all(map(plots.is_number, sharp + spread)):
        return ""
    text = (
        f"The average makes up {_percent(sharp[0])} of an image before, and {_percent(sharp[1])} "
        "after it was straightened: so sharp is it."
    )
    if spread[0]:
        change = spread[1] / spread[0] - 1
        text += (
            f" The variance within a class is {abs(change):.0%} "
            f"{'lower' if change < 0 else 'higher'} "
            f"({spread[0]:.4f} before, {spread[1]:.4f} after)."
        )
    return text


def _embed(data: bytes, kind: str) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "width": width, "height": height}


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}%" if plots.is_number(value) else "—"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _plain(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
