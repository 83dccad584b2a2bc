"""Tables of papers, trained anew cell by cell: what is there is kept, what is missing trained."""

from __future__ import annotations

import fnmatch
import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn.tool import runs
from stn.tool.config import Config, UserError
from stn.tool.data import default_augmentation, default_distortion
from stn.tool.progress import Progress

TITLE = "Test error in % on distorted MNIST, ours and that of Jaderberg et al. 2015, table 1"


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
        distort: The distortion: a column.
        network: `"fcn"`, `"cnn"`, `"st-fcn"` or `"st-cnn"`: its recipe is `table1-` and this.
        transform: The family of the transformer; None for the networks without one.
        paper: The test error in the paper, in percent.
    """

    distort: str
    network: str
    transform: str | None
    paper: float

    @property
    def row(self) -> str:
        """The network, and the family of its transformer."""
        return self.network if self.transform is None else f"{self.network}-{self.transform}"

    @property
    def name(self) -> str:
        """What `--cells` calls it."""
        return f"{self.distort}/{self.row}"


TRIAL = "*"
DISTORTIONS = ("R", "RTS", "P", "E", "TC")

_PAPER: dict[tuple[str, str | None], tuple[float | None, ...]] = {
    ("fcn", None): (2.1, 5.2, 3.1, 3.2, 13.2),
    ("cnn", None): (1.2, 0.8, 1.5, 1.4, 3.5),
    ("st-fcn", "affine"): (1.2, 0.8, 1.5, 2.7, 2.0),
    ("st-fcn", "projective"): (1.3, 0.9, 1.4, 2.6, None),
    ("st-fcn", "tps"): (1.1, 0.8, 1.4, 2.4, None),
    ("st-cnn", "affine"): (0.7, 0.5, 0.8, 1.2, 1.7),
    ("st-cnn", "projective"): (0.8, 0.6, 0.8, 1.3, None),
    ("st-cnn", "tps"): (0.7, 0.5, 0.8, 1.1, None),
}

TABLE1: tuple[Cell, ...] = tuple(
    Cell(distort, network, transform, error)
    for (network, transform), errors in _PAPER.items()
    for distort, error in zip(DISTORTIONS, errors, strict=True)
    if error is not None
)
"""All cells, row by row."""

# Where a run may differ from its cell: in where it ran. How many epochs it had is recorded anyway.
_FREE = ("backend", "precision", "steps_per_execution", "epochs")

# The paper's remedy where a transformer leaves out most of a large canvas: read finer, average.
_POOLED = {"TC": {"output_size": 30, "pooling": 2}}


def choose(patterns: Sequence[str]) -> list[Cell]:
    """The cells that any of some patterns names, in the order of the table.

    Args:
        patterns: Names such as `"R/st-cnn-affine"`, with `*` for anything; a row or a column alone
            will do: `"st-cnn-affine"`, `"R"`. None at all: every cell.

    Raises:
        UserError: If a pattern names no cell.

    Example:
        >>> [cell.name for cell in choose(["TC/*cnn*"])]
        ['TC/cnn', 'TC/st-cnn-affine']
    """
    if not patterns:
        return list(TABLE1)

    def named(pattern: str) -> set[Cell]:
        return {
            cell
            for cell in TABLE1
            if any(
                fnmatch.fnmatchcase(text, pattern) for text in (cell.name, cell.row, cell.distort)
            )
        }

    for pattern in patterns:
        if not named(pattern):
            raise UserError(
                "Expected cells such as R/st-cnn-affine, R/* or st-cnn-affine, of the columns "
                f"{', '.join(DISTORTIONS)} and the rows "
                f"{', '.join(dict.fromkeys(cell.row for cell in TABLE1))}. Received: {pattern!r}"
            )
    wanted = set().union(*map(named, patterns))
    return [cell for cell in TABLE1 if cell in wanted]


def reproduce(
    cells: Sequence[Cell],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (42,),
    progress: Progress | None = None,
    **values: Any,
) -> dict[str, Any]:
    """Train what is missing of some cells, and collect the results of all that are there.

    Args:
        cells: What to train.
        out: A folder: a run folder for each cell and seed goes into it, and `table1.json`. A run
            that is finished is not trained again, one that was interrupted goes on.
        seeds: Of each cell.
        progress: Where to show progress; nowhere by default.
        **values: Values of the configuration that differ from those of the recipes.

    Returns:
        What `collect` returns.

    Raises:
        UserError: If a run in `out` was made with another configuration, or something given cannot
            be used.
    """
    progress = progress or Progress(quiet=True)
    out = Path(out)
    planned = [(seed, cell) for seed in seeds for cell in cells]
    wanted = {(cell, seed): configure(cell, seed=seed, **values) for seed, cell in planned}
    for (cell, seed), config in wanted.items():  # before the first of them is trained
        _check(config, out / _folder(cell, seed))
    collect(out)
    for number, (seed, cell) in enumerate(planned, 1):
        _train(
            wanted[cell, seed], out / _folder(cell, seed), f"{number} of {len(planned)}", progress
        )
        runs.write_json(out / "table1.json", collect(out))
    return collect(out)


def configure(cell: Cell, **values: Any) -> Config:
    """The configuration of a cell: its recipe, distortion, family, and what its column needs."""
    layer = {}
    if cell.transform is not None:
        layer = {"transform": cell.transform, **_POOLED.get(cell.distort, {})}
    return Config(recipe=f"table1-{cell.network}", distort=cell.distort, **{**layer, **values})


def collect(out: str | os.PathLike[str], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The results of all finished runs in a folder that `reproduce` wrote.

    Args:
        out: The folder.
        before: Earlier results, whose runs are kept where the folder has none of the same seed.

    Returns:
        `title`, and `cells`: of every cell of the table `cell`, `row`, `distort`, `paper` (its
        error in percent), `error` (ours, the mean of its runs; None without any), `spread` (the
        standard deviation over them; None of fewer than two) and `runs`, each with `seed`,
        `error`, the numbers of `train` and `test` images, `parameters`, `epochs`, `seconds` of
        training, `command`, where it ran, and `other`, the options that differ from those of the
        cell, if any do.
    """
    kept = {cell["cell"]: cell["runs"] for cell in (before or {}).get("cells", [])}
    found = []
    for cell in TABLE1:
        made = {run["seed"]: run for run in kept.get(cell.name, [])}
        for folder in sorted(Path(out).glob(_folder(cell, "*"))):
            run = runs.Run(folder)
            if run.metrics_file.exists() and (one := _result_of(cell, run)):
                made[run.config.seed] = one
        errors = [one["error"] for one in made.values()]
        found.append(
            {
                "cell": cell.name,
                "row": cell.row,
                "distort": cell.distort,
                "paper": cell.paper,
                "error": round(statistics.mean(errors), 5) if errors else None,
                "spread": round(statistics.stdev(errors), 5) if len(errors) > 1 else None,
                "runs": [made[seed] for seed in sorted(made)],
            }
        )
    return {"title": TITLE, "cells": found}


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table as text: a list of cells for each row, the first of which names it.

    What was not trained as its cell says, or not for as many epochs, is marked by `TRIAL`.

    Example:
        >>> rows({"cells": []})
        []
    """
    table: dict[str, dict[str, str]] = {}
    epochs = {cell.name: configure(cell).epochs for cell in TABLE1}
    for cell in results["cells"]:
        ours = "-" if cell["error"] is None else f"{cell['error']:.2f}"
        ours += "" if cell["spread"] is None else f" ± {cell['spread']:.2f}"
        if any(run.get("other") or run["epochs"] != epochs[cell["cell"]] for run in cell["runs"]):
            ours += TRIAL
        table.setdefault(cell["row"], {})[cell["distort"]] = f"{ours} ({cell['paper']:.1f})"
    return [[row, *(cells.get(d, "") for d in DISTORTIONS)] for row, cells in table.items()]


def _result_of(cell: Cell, run: runs.Run) -> dict[str, Any] | None:
    """The result of a run as one of a cell; None if it is a copy of another under its name."""
    from stn.tool import checkpoints

    config = run.config
    usual = configure(cell, seed=config.seed)
    if run.path.name != _folder(cell, config.seed) or any(
        getattr(config, key) != getattr(usual, key) for key in ("recipe", "distort", "transform")
    ):
        return None
    other = [key for key in checkpoints.differences(usual, config) if key not in _FREE]
    return result(run) | ({"other": other} if other else {})


def _folder(cell: Cell, seed: Any) -> str:
    return f"{cell.distort}-{cell.row}-{seed}"


def _check(config: Config, folder: Path) -> None:
    """Make sure that what is in a folder already was made with this configuration."""
    from stn.tool import checkpoints

    run = runs.Run(folder)
    if not run.config_file.exists():
        return
    if changed := checkpoints.differences(run.config, checkpoints.resolve(config, run)):
        raise UserError(
            f"Expected {folder} to be made with the same configuration. Received another value "
            f"for {', '.join(changed)}; choose another --out, or delete that folder"
        )


def _train(config: Config, folder: Path, number: str, progress: Progress) -> None:
    import keras

    from stn.tool import checkpoints, training

    run = runs.Run(folder)
    if run.metrics_file.exists() and run.report_file.exists():  # the last thing that is written
        progress.say(f"{number}: {folder.name} is trained already")
        return
    progress.say(f"{number}: {folder.name}")
    try:
        training.train(config, folder, resume=run.config_file.exists(), progress=progress)
    except checkpoints.BusyError:
        progress.say(f"{number}: {folder.name} is being trained by another process")
    keras.utils.clear_session()


def result(run: runs.Run) -> dict[str, Any]:
    """What a finished run came to, and how it is made again; see `collect`.

    Of co-localization the share not found is the error, and `mean_iou` is the mean overlap.
    """
    metrics, where, config = run.metrics, run.environment, run.config
    # Co-localization is tested on the canvases that it looks at, and says so once.
    train, test = metrics.get("train", metrics), metrics.get("test", metrics)
    # What the tool filled in by itself is not part of the command, nor where files lie here.
    filled = {"backend": None, "data_dir": None}
    usual = Config(recipe=config.recipe, data=config.data)
    if usual.distort is None and config.distort == default_distortion(config.data):
        filled["distort"] = None
    if usual.augment is None and config.augment == default_augmentation(config.distort or "none"):
        filled["augment"] = None
    return {
        "seed": config.seed,
        "error": round(100 * (1 - test["accuracy"]), 3),
        **({"mean_iou": round(metrics["mean_iou"], 4)} if "mean_iou" in metrics else {}),
        "train": train["count"],
        "test": test["count"],
        "parameters": metrics["parameters"],
        "epochs": metrics["epochs"],
        "seconds": round(metrics["train_seconds"]),
        "command": shlex.join(config.replace(**filled).to_command()),
        **{
            key: where.get(key)
            for key in ("started", "revision", "backend", "device", "cpu", "cores")
        },
    }
