"""Several runs beside each other: one table and one page."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stn.tool import controls, pages, plots, runs, walls
from stn.tool.config import Config, UserError

PICTURES = 12  # test images on the page, seen by every run
WALL_BYTES = 2_500_000  # of all their pictures on the page

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("Test accuracy", lambda value: f"{100 * value:.2f}%"),
    "validation_accuracy": ("Validation accuracy", lambda value: f"{100 * value:.2f}%"),
    "objects_found": ("Objects found", lambda value: f"{100 * value:.1f}%"),
    "parameters": ("Parameters", lambda value: f"{value:,}"),
    "epochs": ("Epochs", lambda value: f"{value}"),
    "train_seconds": ("Training time", pages.duration),
    "images_per_second": ("Images/s in training", lambda value: f"{value:,.0f}"),
    "alignment_error": ("Turn that remains", lambda value: f"{value:.1f}°"),
    "variance": ("Variance within a class", lambda value: f"{100 * value:+.0f}%"),
    "sharpness": ("Sharpness of averages", lambda value: f"{100 * value:.1f}%"),
}
"""By key of `summarize`: how it is called, and how it is written."""


def summarize(run: runs.Run) -> dict[str, Any]:
    """The numbers of a run that can be compared with those of others; None what is not known.

    Args:
        run: A run; of one that is not finished, what its history says so far.

    Returns:
        `name`; `transform`; `finished`; those of `COLUMNS`, of which `objects_found` is the share
        that co-localization finds with an overlap above a half, `images_per_second` is the
        median of the epochs, `alignment_error` the median turn left over in degrees, `variance`
        the change of the variance within a class by straightening, `sharpness` that of the averages
        afterwards.
    """
    metrics, history = run.metrics, run.history
    speeds = [r["images_per_second"] for r in history if runs.is_number(r.get("images_per_second"))]
    spent = [r["seconds"] for r in history if runs.is_number(r.get("seconds"))]
    kept = kept_epoch(run.config, history, metrics)
    so_far = next((r for i, r in enumerate(history, 1) if r.get("epoch", i) == kept), {})
    before, after = (
        (metrics.get("congealing") or {}).get(key) or {} for key in ("inputs", "outputs")
    )
    spread, left = (one.get("within_class_variance") for one in (before, after))
    found = {
        "accuracy": (metrics.get("test") or {}).get("accuracy"),
        "validation_accuracy": (metrics.get("validation") or {}).get(
            "accuracy", so_far.get("val_accuracy")
        ),
        "objects_found": metrics.get("accuracy") if "mean_iou" in metrics else None,
        "parameters": metrics.get("parameters"),
        "epochs": metrics.get("epochs", len(history)),
        "train_seconds": metrics.get("train_seconds", sum(spent) if spent else None),
        "images_per_second": statistics.median(speeds) if speeds else None,
        "alignment_error": (metrics.get("alignment") or {}).get("alignment_error"),
        "variance": left / spread - 1 if runs.is_number(left) and spread else None,
        "sharpness": after.get("sharpness"),
    }
    return {
        "name": run.path.resolve().name,
        "transform": run.config.transform,
        "finished": bool(metrics),
    } | {key: value if runs.is_number(value) else None for key, value in found.items()}


def kept_epoch(
    config: Config, history: list[dict[str, Any]], metrics: dict[str, Any]
) -> int | None:
    """The epoch whose weights a run kept, or would keep if it ended now: without metrics."""
    for key in ("kept_epoch", "best_epoch"):
        if metrics.get(key):
            return metrics[key]
    rated = [
        (record["val_loss"], record.get("epoch", index + 1))
        for index, record in enumerate(history)
        if runs.is_number(record.get("val_loss"))
    ]
    if not rated:
        return None
    return min(rated)[1] if config.keep == "best" else rated[-1][1]


def write(key: str, value: Any) -> str:
    """A number of `summarize` as text."""
    return "—" if value is None else COLUMNS[key][1](value)


def compare(
    compared: Sequence[runs.Run | str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] = "compare.html",
) -> dict[str, Any]:
    """Put runs beside each other, as numbers and on a page with their pictures.

    Args:
        compared: Runs, or their folders; two or more.
        out: The HTML file to write.

    Returns:
        `runs`, what `summarize` says of each, under names that tell them apart; `differences`, by
        key of the configuration the value of each run where they are not the same; `notes`,
        sentences that say what is left out of the page, and why; `page`, the path of the page.

    Raises:
        UserError: If there are fewer than two runs, or one cannot be used.

    Example:
        >>> compare(["runs/affine", "runs/control"])["runs"][0]["accuracy"]  # doctest: +SKIP
        0.973
    """
    if isinstance(compared, str | os.PathLike):
        compared = [compared]
    opened = [runs.Run.open(run) for run in compared]
    if len(opened) < 2:
        raise UserError(f"Expected two runs or more. Received: {len(opened)}")
    out = Path(out)
    configs = [run.config.model_dump() for run in opened]
    settings = {key: [config[key] for config in configs] for key in configs[0]}
    differences = {
        key: values
        for key, values in settings.items()
        if any(value != values[0] for value in values)
    }
    names = _distinct([run.path for run in opened])
    results = {
        "runs": [summarize(run) | {"name": name} for run, name in zip(opened, names, strict=True)],
        "differences": differences,
        "notes": _notes(opened, names),
        "page": str(out),
    }
    runs.write_text(out, pages.render("compare.html", _page(opened, results)))
    return results


def _page(opened: Sequence[runs.Run], results: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for key, (label, _) in COLUMNS.items():
        values = [one[key] for one in results["runs"]]
        if any(value is not None for value in values):
            rows.append((label, [write(key, value) for value in values]))
    fields = type(opened[0].config).model_fields
    names = [one["name"] for one in results["runs"]]
    hung = [i for i, run in enumerate(opened) if run.wall_file.exists()]
    return {
        "names": names,
        "rows": rows,
        "finished": [one["finished"] for one in results["runs"]],
        "comparable": not {*controls.SAME} - {"seed"} & results["differences"].keys(),
        "differences": [
            (key, [pages.plain(value) for value in values], fields[key].description or "")
            for key, values in results["differences"].items()
        ],
        "wall": _wall([opened[i] for i in hung]) if len(hung) > 1 else [],
        "wall_names": [names[i] for i in hung],
        "wall_notes": results["notes"],
        "curves": pages.embed(
            plots.draw_comparison([run.history for run in opened], names),
            "image/png",
            scale=2,
        ),
        "averages": [pages.embed_file(run.averages_file) for run in opened],
    }


def _distinct(paths: Sequence[Path]) -> list[str]:
    """The names of folders, with as many of their parents as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def _notes(opened: Sequence[runs.Run], names: Sequence[str]) -> list[str]:
    """Which runs have no test images to show beside those of the others, and why."""
    notes = []
    hung = [run for run in opened if run.wall_file.exists()]
    for run, name in zip(opened, names, strict=True):
        if run not in hung:
            why = (
                f"there is no {run.wall_file.name} in its folder"
                if run.metrics_file.exists()
                else f"its training has not finished; `stn train --resume {run.path}` goes on"
            )
            notes.append(f"No test images of {name}: {why}")
    if len(hung) > 1 and not _alike(hung):
        notes.append("No test images side by side: the runs do not have the same ones")
    return notes


def _alike(opened: Sequence[runs.Run]) -> bool:
    """Whether the test images of runs are the same, by all that is known of them."""

    def images(run: runs.Run) -> tuple[Any, ...]:
        about, config = run.dataset, run.config
        shape = about["class_names"], about["image_shape"]
        return config.data, config.seed, config.task, *shape, run.metrics["test"]["count"]

    return all(images(run) == images(opened[0]) for run in opened)


def _wall(opened: Sequence[runs.Run]) -> list[dict[str, Any]]:
    """The same test images as every run sees them; those first about which the runs disagree."""
    hung = [walls.cards(run, worst=False) for run in opened]
    shared = set.intersection(*({card["index"] for card in cards} for cards in hung))
    if not shared or not _alike(opened):
        return []
    by_index = [{card["index"]: card for card in cards} for cards in hung]
    order = [card["index"] for card in hung[0] if card["index"] in shared]
    order.sort(key=lambda index: len({cards[index]["right"] for cards in by_index}), reverse=True)
    rows, left = [], WALL_BYTES
    for index in order[:PICTURES]:
        cards = [own[index] for own in by_index]
        left -= pages.size_of(cards)
        if left < 0:
            break
        rows.append({"true": cards[0]["true"], "cards": cards})
    return rows
