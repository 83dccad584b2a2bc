"""What a terminal shows of predictions, to the last control code."""

import io
import re

import pytest
from rich.console import Console

from stn.tool import printing
from stn.tool.config import UserError

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def screen(monkeypatch):
    """A terminal on which both standard output and standard error appear."""
    text = io.StringIO()

    def console(**options):
        options |= {"file": text, "force_terminal": True, "width": 100}
        options.pop("stderr", None)
        return Console(**options)

    monkeypatch.setattr(printing, "Console", console)
    monkeypatch.setenv("TERM", "xterm")
    return text


def found(count):
    for i in range(count):
        yield {"image": f"{i}.png", "class": "a", "probability": 0.5}


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_cursor_comes_back_and_the_bar_is_gone(count, screen, monkeypatch):
    monkeypatch.setattr(printing, "_TABLE_ROWS", 2)
    watch = printing.Watch(live=True)

    def results():
        yield from found(count)
        watch.failed(UserError("Expected an image"))

    printing.print_tables(watch.over(results()), ["image", "class", "probability"], watch)
    watch.sum_up()
    text = screen.getvalue()
    assert HIDE in text, "there was a bar"
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert text.rindex("Left out 1") > text.rindex("probability")
    assert f"Classified {count}" in re.sub(r"\x1b\[[\d;?]*\w", "", text)
    assert "images" not in text[text.rindex(SHOW) :]


def test_the_speed_is_that_after_the_first_batch(screen, monkeypatch):
    now = iter([5.0, 5.0, 5.0, 7.0, 7.0, 7.0])  # of the results, in two batches
    clock = type("Clock", (), {"perf_counter": staticmethod(lambda: next(now))})
    monkeypatch.setattr(printing, "time", clock)
    watch = printing.Watch(live=True)
    said = []
    for _ in watch.over(found(6)):
        said.append(watch.bar.tasks[0].fields["rate"])
    assert said == ["", "", "", "0 images/s", "1 images/s", "2 images/s"]


def test_the_cursor_comes_back_when_it_is_interrupted(screen):
    watch = printing.Watch(live=True)
    results = watch.over(found(3))
    next(results)
    results.close()
    assert screen.getvalue().rindex(SHOW) > screen.getvalue().rindex(HIDE)
