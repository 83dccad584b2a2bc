"""Records of measurements as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

_BUSY = 0.05


def show(record: dict[str, Any], console: Console) -> None:
    """Print a record."""
    where = record["environment"]
    console.print(
        f"[bold]{record['topic']}[/] on {where['backend']} {where['backend_version']}, "
        f"{hardware(where)}",
        highlight=False,
    )
    for part in _TABLES[record["topic"]](record):
        if isinstance(part, Table):
            console.print(part)
        else:
            console.print(part, markup=False, highlight=False)
    for name, reason in record["missing"].items():
        console.print(f"{name} is missing: {reason}", markup=False, highlight=False)
    if warning := busy(record):
        console.print(f"[bold yellow]{warning}[/]", highlight=False)


def hardware(where: dict[str, Any]) -> str:
    """One line about where something was measured."""
    device = "" if where["device"] == "cpu" else f"{where['device']}, "
    return f"{device}{where['threads']} cores of {where['cpu']}"


def busy(record: dict[str, Any]) -> str:
    """What to say if other processes were at work meanwhile; nothing if they were not."""
    if (record["neighbors"] or 0) < _BUSY:
        return ""
    return (
        f"Other processes took up to {record['neighbors']:.0%} of the processor meanwhile. That "
        "slows some libraries down more than others: these ratios are not fair"
    )


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it.

    Example:
        >>> duration(0.0012), duration(3.5)
        ('1.20 ms', '3.50 s')
    """
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms".replace("e+03", "000")


def _sampler(record: dict[str, Any]) -> Iterator[Table | str]:
    table = Table()
    for column in (
        "images",
        "pass",
        "who",
        "time",
        "quartiles",
        "ours / theirs",
        "of the floor",
        "memory",
    ):
        table.add_column(column, no_wrap=True)
    for case in record["cases"]:
        head = ["x".join(map(str, case["shape"])), case["pass"]]
        for entry in case["contenders"]:
            name, spread = entry["name"], entry["seconds"]
            ratio = case["ratios"].get(name, {})
            quoted = ratio.get("theirs") == entry["variant"]
            table.add_row(
                *head,
                f"{name}, {entry['variant']}",
                duration(spread["median"]),
                f"[dim]{duration(spread['low'])} - {duration(spread['high'])}[/]",
                times(ratio) if quoted else "",
                f"{entry['share_of_floor']:.1%}",
                _memory(entry.get("memory")),
            )
            head = ["", ""]
        table.add_section()
    yield table
    for reason, where in left_out(record["cases"]).items():
        yield f"left out: {reason} ({', '.join(where)})"

    if record["growth"]:
        yield _growth(record["growth"])


def _growth(curves: list[dict[str, Any]]) -> Table:
    table = Table("ours over", "pass", "times", "power (1: linear)")
    for curve in curves:
        points = zip(curve["shapes"], curve["seconds"], strict=True)
        text = ", ".join(f"{'x'.join(map(str, shape))} {duration(s)}" for shape, s in points)
        table.add_row(curve["over"], curve["pass"], text, f"{curve['power']:.2f}")
    return table


def _memory(found: dict[str, Any] | None) -> str:
    return "" if found is None or found["times"] is None else f"{found['times']:.1f}x"


def times(ratio: dict[str, Any]) -> str:
    """A ratio of times with its interval."""
    return f"[bold]{ratio['median']:.2f}[/] [dim]{ratio['low']:.2f} - {ratio['high']:.2f}[/]"


def left_out(cases: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The reasons why some were left out, each with all cases it is true of."""
    found: dict[str, list[str]] = {}
    for case in cases:
        for one in case["left_out"]:
            reason = f"{one['name']}, {one['variant']}: {one['reason']}"
            found.setdefault(reason, []).append(
                f"{'x'.join(map(str, case['shape']))} {case['pass']}"
            )
    return found


def _train(record: dict[str, Any]) -> Iterator[Table | str]:
    table = Table("model", "step", "quartiles", "images/s", "times as fast as the tutorial's")
    for name, found in record["steps"].items():
        spread = found["seconds"]
        table.add_row(
            name,
            duration(spread["median"]),
            f"[dim]{duration(spread['low'])} - {duration(spread['high'])}[/]",
            f"{found['images_per_second']:,.0f}",
            times(record["ratios"][name]) if name in record["ratios"] else "",
        )
    yield table
    table = Table("distortion", "images/s", "OpenCV's loop", "times as fast")
    for name, found in record["distortions"].items():
        theirs = found.get("opencv", {}).get("images_per_second")
        table.add_row(
            name,
            f"{found['stn']['images_per_second']:,.0f}",
            "-" if theirs is None else f"{theirs:,.0f}",
            times(found["ratio"]) if "ratio" in found else "",
        )
    yield table
    waiting = share(record["input_share"])
    yield f"batch {record['batch']}; of a step, changing the images takes {waiting}"
    shares = ", ".join(
        f"{value:.2%} of {name}" for name, value in record["monitor"]["shares"].items()
    )
    yield f"monitor: {duration(record['monitor']['seconds']['median'])} an epoch, {shares}"
    yield first_step(record)


def share(spread: dict[str, float]) -> str:
    """A share with its interval."""
    return f"{spread['median']:.1%} ({spread['low']:.1%} to {spread['high']:.1%})"


def first_step(record: dict[str, Any]) -> str:
    """One line about the first training step."""
    parts = {name: duration(spread["median"]) for name, spread in record["first_step"].items()}
    total = parts.pop("total")
    text = ", ".join(f"{name} {value}" for name, value in parts.items())
    return f"first training step of a new process: {total} ({text})"


def _predict(record: dict[str, Any]) -> Iterator[Table | str]:
    table = Table("stream", "images", "images/s", "processor time an image", "memory")
    for name, stream in record["streams"].items():
        before = 0
        for mark in stream["marks"]:
            memory = mark["resident_bytes"]
            table.add_row(
                "" if before else name,
                f"{mark['images']:,}",
                f"{mark['images_per_second']:,.0f}",
                duration(mark["processor_seconds"] / (mark["images"] - before)),
                "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
            )
            before = mark["images"]
        table.add_section()
    yield table


def _import(record: dict[str, Any]) -> Iterator[Table | str]:
    table = Table("what", "time", "quartiles", "processor time")
    for name, both in record["starts"].items():
        spread = both["seconds"]
        table.add_row(
            name,
            duration(spread["median"]),
            f"[dim]{duration(spread['low'])} - {duration(spread['high'])}[/]",
            duration(both["processor_seconds"]["median"]),
        )
    yield table
    yield first_step(record)


_TABLES = {"sampler": _sampler, "train": _train, "predict": _predict, "import": _import}
