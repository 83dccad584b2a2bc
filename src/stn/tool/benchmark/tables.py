"""Records of measurements as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table


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
    for name, reason in record.get("missing", {}).items():
        console.print(f"{name} is missing: {reason}", markup=False, highlight=False)


def hardware(where: dict[str, Any]) -> str:
    """One line about where something was measured."""
    device = "" if where["device"] == "cpu" else f"{where['device']}, "
    return f"{device}{where['threads']} cores of {where['cpu']}"


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
    for column in ("images", "pass", "who", "time", "quartiles", "ours / theirs", "of the floor"):
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
            )
            head = ["", ""]
        table.add_section()
    yield table
    for reason, where in _left_out(record["cases"]).items():
        yield f"left out: {reason} ({', '.join(where)})"


def times(ratio: dict[str, Any]) -> str:
    """A ratio of times with its interval."""
    return f"[bold]{ratio['median']:.2f}[/] [dim]{ratio['low']:.2f} - {ratio['high']:.2f}[/]"


def _left_out(cases: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The reasons why some were left out, each with all cases it is true of."""
    found: dict[str, list[str]] = {}
    for case in cases:
        for one in case["left_out"]:
            reason = f"{one['name']}, {one['variant']}: {one['reason']}"
            found.setdefault(reason, []).append(
                f"{'x'.join(map(str, case['shape']))} {case['pass']}"
            )
    return found


_TABLES = {"sampler": _sampler}
