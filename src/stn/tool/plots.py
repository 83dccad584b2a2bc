"""Plots of numbers, as the bytes of a PNG: training, sweeps, histograms, confusion of classes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stn.tool import alarms, runs

BLUE = "#1f5fae"
NARROW = (4.2, 7.0)  # inches of two plots below each other, for a phone
LINES = (BLUE, "#b93c0a", "#14783a", "#7a3fa0", "#8893a3", "#a8730a")


def draw_curves(
    history: list[dict[str, Any]], kept_epoch: int | None, *, narrow: bool = False
) -> bytes:
    """Plot loss and accuracy of training and validation over the epochs.

    Args:
        history: Records with `epoch`, `loss`, `accuracy`, `val_loss`, `val_accuracy`; what is
            missing or not finite is left out. A single epoch shows as points.
        kept_epoch: The epoch whose weights were kept; it is marked.
        narrow: For a narrow screen: the plots are below each other.

    Example:
        >>> draw_curves(run.history, kept_epoch=9)  # doctest: +SKIP
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=NARROW if narrow else (9, 3.7), dpi=200, facecolor="white")
    last = max((record.get("epoch", 1) for record in history), default=1)
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    for panel, key, name in zip(panels, ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True):
        panel.set_title(name, loc="left", fontsize=12, fontweight="bold", color="#1c2026", pad=10)
        for column, label, color, width in (
            (key, "training", "#8893a3", 1.8),
            (f"val_{key}", "validation", BLUE, 2.2),
        ):
            found = _series(history, column)
            if not found:
                continue
            epochs, values = zip(*found, strict=True)
            marker = "o" if len(found) <= 30 else None
            size = 7 if len(found) == 1 else 3.5
            panel.plot(
                epochs,
                values,
                color=color,
                lw=width,
                marker=marker,
                ms=size,
                label=label,
                solid_capstyle="round",
                zorder=3,
                clip_on=False,
            )
            if column.startswith("val_") and kept_epoch in epochs:
                value = values[epochs.index(kept_epoch)]
                panel.plot(
                    [kept_epoch],
                    [value],
                    "o",
                    ms=9,
                    mfc=BLUE,
                    mec="#d9480f",
                    mew=2.2,
                    zorder=4,
                    clip_on=False,
                )
        if kept_epoch is not None and history:
            panel.axvline(kept_epoch, color="#d9480f", lw=1, ls=(0, (3, 3)), zorder=1)
            late = kept_epoch > (1 + last) / 2
            panel.annotate(
                f"kept: epoch {kept_epoch}",
                (kept_epoch, 1),
                (-5 if late else 5, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                ha="right" if late else "left",
                fontsize=9,
                color="#b93c0a",
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
            )
        panel.set_xlabel("epoch", fontsize=10, color="#5c6470")
        panel.set_xlim(*((0.5, 1.5) if last <= 1 else (1 - 0.03 * last, last + 0.03 * last)))
        panel.margins(y=0.12)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        panel.grid(axis="y", color="#e6e9ed", lw=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(length=0, labelsize=10, labelcolor="#3c434d")
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.spines["bottom"].set_color("#bec4cc")
        if not history:
            panel.text(
                0.5,
                0.5,
                "no finished epoch",
                transform=panel.transAxes,
                ha="center",
                color="#5c6470",
            )
    panels[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    handles, names = panels[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 1, 0.98), w_pad=3)
    if handles:
        figure.legend(
            handles,
            names,
            loc="upper right",
            ncols=2,
            frameon=False,
            fontsize=10,
            bbox_to_anchor=(0.995, 1.0),
            handlelength=1.6,
            columnspacing=1.4,
        )
    return _png(figure)


def draw_comparison(histories: Sequence[list[dict[str, Any]]], names: Sequence[str]) -> bytes:
    """Plot the validation accuracy of several runs over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9, 4), dpi=200, facecolor="white")
    panel = figure.subplots()
    panel.set_title("Validation accuracy", loc="left", fontsize=12, fontweight="bold", pad=10)
    for i, (history, name) in enumerate(zip(histories, names, strict=True)):
        found = _series(history, "val_accuracy")
        if found:
            style = "-" if i < 6 else "--"
            color = LINES[i % len(LINES)]
            panel.plot(
                *zip(*found, strict=True), style, color=color, marker="o", ms=3.5, label=name
            )
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.grid(axis="y", color="#e6e9ed")
    panel.spines[["top", "right"]].set_visible(False)
    if panel.lines:
        _name_lines(panel, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure, bbox_inches="tight", pad_inches=0.15)


def _name_lines(panel: Any, **place: Any) -> None:
    """A legend of all lines; Matplotlib's own leaves out those whose name begins with "_"."""
    legend = panel.legend(
        panel.lines, [line.get_label() for line in panel.lines], frameon=False, **place
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"


def _number(value: float) -> str:
    return f"{value:.3g}"


class _Panel(NamedTuple):
    """What is watched in one plot."""

    title: str
    lines: dict[str, str]  # labels, by key of the history
    write: Callable[[float], str]
    powers: bool = False  # of ten, rather than even steps
    above: float = math.inf  # where an alarm is raised
    below: float = 0.0


_WATCHED = (
    _Panel(
        "Points outside the image",
        {"out_of_frame": "points"},
        _share,
        above=alarms.OUT_OF_FRAME,
    ),
    _Panel(
        "Area looked at (of the image)",
        {"sampled_area": "median"},
        _number,
        powers=True,
        above=alarms.ZOOMED_OUT,
        below=alarms.COLLAPSED,
    ),
    _Panel(
        "Movement of the points (of the side)",
        {"theta_moved": "from the identity", "theta_spread": "from image to image"},
        _share,
        below=alarms.ALIKE,
    ),
    _Panel("Rank of the transformations", {"theta_rank": "over the images"}, _number),
    _Panel(
        "Size of the gradient",
        {"localization_gradient": "localization", "classifier_gradient": "classifier"},
        _number,
        powers=True,
        below=alarms.VANISHED,
    ),
    _Panel("Images at their bounds", {"saturated": "images"}, _share, above=alarms.SATURATED),
)


def draw_watched(history: list[dict[str, Any]], *, narrow: bool = False) -> bytes | None:
    """Plot what alarms watch over the epochs; None where nothing was measured.

    Shaded is where an alarm is raised.
    """
    from matplotlib.figure import Figure

    panels = [one for one in _WATCHED if any(_series(history, key) for key in one.lines)]
    if not panels:
        return None
    rows = len(panels) if narrow else math.ceil(len(panels) / 2)
    figure = Figure(figsize=(4.2 if narrow else 9, (3 if narrow else 2.8) * rows), dpi=200)
    axes = np.ravel(figure.subplots(rows, 1 if narrow else 2, squeeze=False))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_watched(axis, panel, history)
    figure.tight_layout(h_pad=2)
    return _png(figure)


def _draw_watched(axis: Any, panel: _Panel, history: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    series = [_series(history, key) for key in panel.lines]
    # Zero has no place among powers of ten: it is drawn below all others.
    positive = [value for one in series for _, value in one if value > 0]
    positive += [panel.below] if panel.below else []
    floor = min(positive) / 3 if panel.powers and positive else -math.inf
    shown = []
    for found, label, color in zip(series, panel.lines.values(), LINES, strict=False):
        if found:
            epochs, values = zip(*found, strict=True)
            values = [max(value, floor) for value in values]
            axis.plot(epochs, values, color=color, marker="o", ms=3, label=label)
            shown += values
    near = min(shown) < 10 * panel.below
    powers = panel.powers and (near or max(shown) > 10 * min(shown))
    if powers:
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)
    # What is far from an alarm need not show where that would be.
    low, high = axis.get_ylim()
    low, high = (low / 1.6, high * 1.6) if powers else (low, max(1.15 * high, 1e-6))
    spans = []  # no further than is shown, for Matplotlib cannot draw far
    if high > 0.6 * panel.above:
        high = max(high, 1.3 * panel.above)
        spans.append((panel.above, high))
    if min(shown) < 3 * panel.below:
        low = min(low, panel.below / 3) if powers else low
        spans.append((low, panel.below))
    for ends in spans:
        axis.axhspan(*ends, color="#d9480f", alpha=0.12, lw=0)
    axis.set_ylim(low, high)
    if all(isinstance(value, int) for value in shown):
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: panel.write(value)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color="#1c2026")
    axis.grid(axis="y", color="#e6e9ed", lw=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(which="both", length=0, labelsize=9, labelcolor="#3c434d")
    axis.set_xlabel("epoch", fontsize=9, color="#5c6470")
    if len(axis.lines) > 1:
        axis.legend(frameon=False, fontsize=9, handlelength=1.4)


def draw_theta(quantities: dict[str, Any]) -> bytes:
    """Plot histograms of how images were turned, zoomed, sheared and moved.

    Args:
        quantities: Those of `stn.tool.alignment.survey`.

    Example:
        >>> draw_theta(survey(...)["quantities"])  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=200, facecolor="white")
    titles = {
        "angle": "Turned (degrees, left is positive)",
        "zoom_x": "Zoomed sideways (times)",
        "zoom_y": "Zoomed upwards (times)",
        "shear": "Sheared (tangent)",
        "right": "Moved right (of the image)",
        "down": "Moved down (of the image)",
    }
    for panel, (key, title) in zip(figure.subplots(2, 3).flat, titles.items(), strict=True):
        values = np.asarray(quantities[key])
        values = values[np.isfinite(values)]
        panel.set_title(title, loc="left", fontsize=10, color="#1c2026")
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.set_yticks([])
        if not len(values):
            continue
        # A few wild ones would squeeze all others into one bar.
        low, high = np.quantile(values, [0.002, 0.998])
        if high - low < 1e-3:
            low, high = low - 0.5, high + 0.5
        panel.hist(np.clip(values, low, high), bins=41, range=(low, high), color=BLUE)
        panel.axvline(1.0 if "zoom" in key else 0.0, color="#8893a3", linestyle=":")
    figure.tight_layout()
    return _png(figure)


def draw_sweep(results: dict[str, Any], *, narrow: bool = False) -> bytes:
    """Plot accuracy, and the alignment error where there is one, over a disturbance.

    Args:
        results: What `stn.tool.sweeps.sweep` returns.
        narrow: For a narrow screen: the plots are below each other.

    Example:
        >>> draw_sweep(sweep("runs/affine", "rotation"))  # doctest: +SKIP
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    aligned = any("alignment_error" in run["points"][0] for run in results["runs"])
    size = (9 if aligned else 5, 3.7)
    if narrow:
        size = NARROW if aligned else (4.2, 3.5)
    figure = Figure(figsize=size, dpi=200, facecolor="white")
    shape = (1 + aligned, 1) if narrow else (1, 1 + aligned)
    panels = figure.subplots(*shape, squeeze=False).ravel()
    titles = ("Accuracy", f"What remains ({results['error_unit']})")
    for panel, key, title in zip(panels, ("accuracy", "alignment_error"), titles, strict=False):
        panel.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#1c2026", pad=10)
        for run, color in zip(results["runs"], (BLUE, "#8893a3"), strict=False):
            points = [point for point in run["points"] if key in point]
            if not points:
                continue
            x = [point["strength"] for point in points]
            low, high = (
                [point.get(f"{key}_{end}", point[key]) for point in points]
                for end in ("low", "high")
            )
            panel.plot(x, [point[key] for point in points], "o-", color=color, label=run["name"])
            panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        panel.set_xlabel(f"{results['kind']} ({results['unit']})")
        panel.grid(color="#e3e7ec")
        panel.spines[["top", "right"]].set_visible(False)
        _name_lines(panel)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylim(0, 1.02)
    if aligned:
        panels[1].set_ylim(bottom=1.0 if results["error_unit"] == "factor" else 0.0)
        if results["kind"] != "scale":  # what would be left if nothing were taken back
            strengths = [point["strength"] for point in results["runs"][0]["points"]]
            panels[1].plot(strengths, strengths, ":", color="#8893a3", label="nothing taken back")
            _name_lines(panels[1])
    figure.tight_layout()
    return _png(figure)


def draw_confusion(confusion: Any, class_names: Sequence[str]) -> bytes:
    """Plot which classes are taken for which: every row adds up to 100%.

    Args:
        confusion: Counts `(k, k)`: rows are the true classes, columns the predicted ones.
        class_names: The names of the `k` classes.

    Raises:
        ValueError: If the shape does not fit the names.

    Example:
        >>> draw_confusion([[9, 1], [0, 5]], ["cat", "dog"])  # doctest: +SKIP
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, np.float64)
    k = len(class_names)
    if k == 0 or counts.shape != (k, k):
        raise ValueError(
            f"Expected a confusion matrix of shape ({k}, {k}), as there are {k} class names. "
            f"Received: shape {counts.shape}"
        )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)

    side = min(max(3.0, 2.2 + 0.34 * k if k <= 10 else 3.9 + 0.17 * (k - 10)), 17.0)
    cell = side * 72 / k
    font = min(11.0, max(3.0, cell * 0.74))
    names = [name if len(name) <= 18 else name[:17] + "…" for name in map(str, class_names)]
    longest = max(map(len, names)) * 0.62 * font
    upright = longest > cell * 0.95
    room = longest / 72 + 0.65  # inches for the names and the title of an axis
    wide, tall = side + room + 1.15, side + (room if upright else 0.65) + 0.15
    figure = Figure(figsize=(wide, tall), dpi=200 if side < 8 else 150, facecolor="white")
    panel = figure.add_axes((room / wide, 1 - (side + 0.15) / tall, side / wide, side / tall))
    colors = LinearSegmentedColormap.from_list(
        "stn", ["#ffffff", "#d5e4f5", "#8db8e2", "#3f80c4", "#123f7a"]
    ).with_extremes(bad="#e9ebee")
    # A square-root scale: errors are rare, and on a linear one they would all look white.
    norm = PowerNorm(0.5, 0.0, 1.0)
    image = panel.imshow(
        np.ma.masked_invalid(shares),
        cmap=colors,
        norm=norm,
        interpolation="nearest",
        aspect="equal",
    )
    every = max(1, math.ceil(k / 120))
    ticks = range(0, k, every)
    shown = names[::every]
    # In this font I and l, O and 0 are unlike.
    labels: dict[str, Any] = {"fontsize": font, "family": "DejaVu Sans Mono", "parse_math": False}
    panel.set_xticks(ticks, shown, rotation=90 if upright else 0, **labels)
    panel.set_yticks(ticks, shown, **labels)
    panel.tick_params(length=0, pad=3, colors="#1c2026")
    panel.set_xlabel("predicted", fontsize=11, color="#5c6470", labelpad=6)
    panel.set_ylabel("true", fontsize=11, color="#5c6470", labelpad=6)
    panel.spines[:].set_color("#bec4cc")
    lines = np.arange(k + 1) - 0.5
    panel.set_xticks(lines, minor=True)
    panel.set_yticks(lines, minor=True)
    panel.grid(which="minor", color="#e3e7ec" if k > 20 else "#d5dae1", lw=0.4 if k > 20 else 0.7)
    panel.tick_params(which="minor", length=0)
    if k <= 20:
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            label = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            if k <= 4:
                label = f"{100 * share:.1f}%\n{counts[row, column]:,.0f}"
            panel.text(
                column,
                row,
                label,
                ha="center",
                va="center",
                linespacing=1.4,
                fontsize=min(11.0, cell * 0.42 if k > 4 else 11.0),
                color="white" if share > 0.35 else "#1c2026",
            )
    bar_axes = figure.add_axes(
        (
            (room + side + 0.22) / wide,
            1 - (0.15 + min(side, 4.0)) / tall,
            0.13 / wide,
            min(side, 4.0) / tall,
        )
    )
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "20%", "50%", "100%"], fontsize=9)
    bar.ax.tick_params(length=0, colors="#3c434d")
    bar.minorticks_off()
    bar.outline.set_edgecolor("#bec4cc")  # pyright: ignore[reportCallIssue]
    return _png(figure, bbox_inches="tight", pad_inches=0.15)


def _series(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """A value of the history over the epochs, where it is known and finite."""
    found = [(one.get("epoch", i), one.get(key)) for i, one in enumerate(history, 1)]
    return [(epoch, value) for epoch, value in found if runs.is_number(value)]


def _png(figure: Any, **options: Any) -> bytes:
    import warnings

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A class name in a script that DejaVu lacks is drawn as boxes; that is no one's mistake.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", metadata={"Software": None}, **options)
    return buffer.getvalue()
