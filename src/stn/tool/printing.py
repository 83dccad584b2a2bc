"""What is printed: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import typer
from rich import box
from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from stn.tool import runs
from stn.tool.config import UserError
from stn.tool.data import Source
from stn.tool.images import NothingFoundError

_TABLE_ROWS = 1000  # of a table; more come in several
_BURST = 0.1  # seconds in which the results of one batch arrive


class Watch:
    """What a person sees of predictions: how many there are, and what could not be used."""

    def __init__(self, *, live: bool):
        self.failures, self._missing = 0, 0
        self._done, self._going = 0, False
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.completed:,.0f} images"),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not (live and self._console.is_terminal),
        )

    def over(self, results: Iterator[dict[str, Any]]) -> Generator[dict[str, Any]]:
        """The results, counted; the command ends here if there was nothing to look at."""
        begun, burst = 0.0, 0
        with self.bar:
            self._going = True
            task = self.bar.add_task("", total=None, rate="")
            try:
                for self._done, result in enumerate(results, 1):
                    now = time.perf_counter()
                    begun = begun or now
                    # The first batch is there at once, after the model was loaded and compiled:
                    # how fast it goes is seen from the next on.
                    if now - begun < _BURST:
                        burst = self._done
                    else:
                        rate = (self._done - burst) / (now - begun)
                        self.bar.update(task, rate=f"{rate:,.0f} images/s")
                    self.bar.update(task, completed=self._done)
                    yield result
            finally:
                self._going = False
        if not self._done and self.failures == self._missing:
            raise typer.Exit(2)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Without the bar meanwhile; after the last result it does not come back."""
        self.bar.stop()
        yield
        if self._going:
            self.bar.start()

    def sum_up(self) -> None:
        """Say how many could not be used, if any; after the results."""
        if self.failures:
            self._say(
                f"Left out {self.failures:,}, for the reasons above. Classified {self._done:,}"
            )

    def failed(self, error: UserError) -> None:
        """Say what could not be used, and why."""
        self.failures += 1
        self._missing += isinstance(error, NothingFoundError)
        self._say(str(error))

    def _say(self, message: str) -> None:
        self._console.print(Text.assemble(("stn:", "bold red"), f" {message}"))


def print_json(results: Iterator[dict[str, Any]]) -> None:
    """One JSON array, written as it goes, and closed whatever happens; nothing before a result."""
    begun = False
    try:
        for result in results:
            sys.stdout.write((",\n" if begun else "[\n") + json.dumps(result))
            begun = True
    finally:
        if begun:
            sys.stdout.write("\n]\n")
    if not begun:
        sys.stdout.write("[]\n")


def print_csv(results: Iterator[dict[str, Any]], columns: list[str]) -> None:
    """Comma-separated values with a header, a line as soon as it is there."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    first = next(results, None)
    writer.writeheader()
    if first is not None:
        writer.writerow(first)
        writer.writerows(results)


def print_tables(results: Iterator[dict[str, Any]], columns: list[str], watch: Watch) -> None:
    """A table, or several, lest a hundred thousand rows have to be kept until the last."""
    while block := list(itertools.islice(results, _TABLE_ROWS)):
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")
        for result in block:
            shown = result | {"probability": f"{result['probability']:.1%}"}
            table.add_row(*(escape(shown[column]) for column in columns))
        with watch.paused():
            Console(soft_wrap=True).print(table)


def print_run(run: runs.Run, console: Console) -> None:
    """Show what a run came to and where everything is; its folder goes to standard output."""
    metrics = run.metrics
    table = Table(title="Result", title_justify="left", show_header=False)
    if "mean_iou" in metrics:  # of colocalization
        rows = {
            "found": f"{metrics['accuracy']:.0%} of {metrics['count']}, overlap above 0.5",
            "mean overlap": f"{metrics['mean_iou']:.2f}, intersection over union",
        }
    else:
        test = metrics["test"]
        rows = {
            "test accuracy": f"{test['accuracy']:.2%} of {test['count']} images",
            "validation accuracy": f"{metrics['validation']['accuracy']:.2%}",
            "kept epoch": f"{metrics['kept_epoch']} of {metrics['epochs']}",
        }
    rows |= {
        "training time": f"{metrics['train_seconds']:.0f} s",
        "report": str(run.report_file),
        "film": str(run.film_file),
        "model": str(run.model_file),
        "metrics": str(run.metrics_file),
    }
    for row in rows.items():
        table.add_row(*map(escape, row))
    console.print(table)
    typer.echo(run.path)


def print_paper(results: dict[str, Any], console: Console) -> None:
    """Show a table of `stn.tool.reproduction` beside the paper's."""
    from stn.tool import reproduction

    rows = reproduction.rows(results)
    # So narrow that on 80 columns no name of a row is cut off.
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.title, table.title_justify = f"{results['title']} (in brackets)", "left"
    table.add_column(min_width=max(len(row[0]) for row in rows))
    for column in reproduction.DISTORTIONS:
        table.add_column(column)
    for row in rows:
        table.add_row(*(c.replace(" ± ", "±").replace(" (", "\n(") if "±" in c else c for c in row))
    console.print(table)
    if any(reproduction.TRIAL in text for row in rows for text in row):
        console.print(
            f"{reproduction.TRIAL} not as many epochs as the recipe says", highlight=False
        )


def print_comparison(results: dict[str, Any]) -> None:
    """Show what `stn.compare` found: numbers, then in what the runs differ."""
    from stn.tool import comparison

    table = Table("")
    for one in results["runs"]:
        name = escape(one["name"]) + ("" if one["finished"] else " (not finished)")
        table.add_column(name, justify="right", overflow="fold")
    for key, (label, _) in comparison.COLUMNS.items():
        if any(one[key] is not None for one in results["runs"]):
            table.add_row(label, *(comparison.write(key, one[key]) for one in results["runs"]))
    for key, values in results["differences"].items():
        table.add_row(f"[dim]{key}[/]", *(f"[dim]{escape(str(value))}[/]" for value in values))
    Console(soft_wrap=True).print(table)
    for note in results["notes"]:
        typer.echo(note)
    typer.echo(results["page"])


def print_recipes(found: dict[str, str]) -> None:
    """Show what recipes there are, and what each is."""
    table = Table("recipe", "what it is")
    for name, text in found.items():
        table.add_row(escape(name), escape(text))
    Console().print(table)


def print_sources(sources: Iterable[Source]) -> None:
    """Show what data sets there are."""
    table = Table("name", "what it is", "classes", "train", "test", "distortion")
    for source in sources:
        numbers = [
            "-" if number is None else f"{number:,}"
            for number in (source.classes, source.train, source.test)
        ]
        row = (source.name, source.title, *numbers, source.default_distortion)
        table.add_row(*map(escape, row))
    Console().print(table)


def print_accuracy(results: dict[str, Any]) -> None:
    """Show what `stn.evaluate` found, class by class."""
    console = Console(soft_wrap=True)
    console.print(
        f"accuracy [bold]{results['accuracy']:.2%}[/], loss {results['loss']:.4f}, "
        f"{results['count']} images",
        highlight=False,
    )
    table = Table("class", "images", "accuracy", "most often taken for")
    for index, (name, found) in enumerate(results["per_class"].items()):
        row = list(results["confusion"][index])
        row[index] = 0
        most = max(range(len(row)), key=row.__getitem__)
        share = "-" if found["accuracy"] is None else f"{found['accuracy']:.1%}"
        wrong = f"{results['class_names'][most]} ({row[most]})" if row[most] else "-"
        table.add_row(escape(name), str(found["count"]), share, escape(wrong))
    console.print(table)


def print_sweep(results: dict[str, Any], kind: str) -> None:
    """Show accuracy and alignment error over the strength of a disturbance."""

    def cell(point: dict[str, float], key: str, factor: float, form: str) -> str:
        spread = (point[f"{key}_high"] - point[f"{key}_low"]) / 2
        return f"{factor * point[key]:{form}} [dim]± {factor * spread:{form}}[/]"

    table = Table(f"{kind} ({results['unit']})")
    for one in results["runs"]:
        table.add_column(f"{escape(one['name'])}: accuracy (%)")
        if "alignment_error" in one["points"][0]:
            table.add_column(f"left over ({results['error_unit']})")
    for points in zip(*(one["points"] for one in results["runs"]), strict=True):
        row = [f"{points[0]['strength']:g}"]
        for point in points:
            row.append(cell(point, "accuracy", 100, ".1f"))
            if "alignment_error" in point:
                row.append(cell(point, "alignment_error", 1, ".3g"))
        table.add_row(*row)
    Console(soft_wrap=True).print(table)
