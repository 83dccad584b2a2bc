"""What a person sees while a command works: always on standard error, never on standard output."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich import progress as bars
from rich.console import Console


class Progress:
    """Shows steps, epochs and messages; a live bar in a terminal, plain lines elsewhere.

    Args:
        quiet: Show nothing at all.
    """

    def __init__(self, *, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a message as it is."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        begun = time.perf_counter()
        if self.console.is_terminal:
            with self.console.status(title):
                yield
        else:
            yield
        self.say(f"{title}: {time.perf_counter() - begun:.1f} s")

    @contextlib.contextmanager
    def epoch(self, epoch: int, epochs: int, steps: int) -> Iterator[EpochBar]:
        """A bar for the steps of one epoch, gone when the block ends."""
        bar = bars.Progress(
            bars.TextColumn("epoch {task.fields[epoch]}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[numbers]}"),
            bars.TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            # Without a terminal the lines of `epoch_done` are enough.
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task("", total=steps, epoch=f"{epoch}/{epochs}", numbers="")
            yield EpochBar(bar, task)

    def epoch_done(self, record: dict[str, Any], *, best: bool) -> None:
        """Print the line of a finished epoch."""
        shown = ("loss", "accuracy", "val_loss", "val_accuracy", "mean_iou")
        numbers = "  ".join(f"{key} {record[key]:.4f}" for key in shown if key in record)
        self.say(
            f"epoch {record['epoch']:3d}  {numbers}  {record['images_per_second']:.0f} images/s  "
            f"{record['seconds']:.1f} s{'  best' if best else ''}"
        )


class EpochBar:
    """The bar of one epoch."""

    def __init__(self, bar: bars.Progress, task: Any):
        self._bar, self._task, self._begun = bar, task, time.perf_counter()

    def update(self, steps: int, loss: float, accuracy: float | None, batch_size: int) -> None:
        """Show how far the epoch is, with its running means."""
        rate = steps * batch_size / (time.perf_counter() - self._begun)
        measured = "" if accuracy is None else f"accuracy {accuracy:.4f}  "
        numbers = f"loss {loss:.4f}  {measured}{rate:.0f} images/s"
        self._bar.update(self._task, completed=steps, numbers=numbers)
