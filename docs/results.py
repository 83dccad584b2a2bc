"""Write docs/results.md from the records in docs/results/.

python docs/results.py                                  # write the page
python docs/results.py add emnist-byclass RUN [RUN ...]  # put finished runs into a record first
python docs/results.py add table1 FOLDER                 # a folder of `stn reproduce table1`
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np

from stn.tool import reproduction, runs

FOLDER = Path(__file__).parent

HEAD = """\
# Results

Written by `python docs/results.py` from the records in `docs/results/`, which hold what the runs
themselves wrote: no number in a table is typed by hand. A `±` is the standard deviation over seeds;
without one there was one seed, which says less than its digits. What failed, and how it was chosen,
is in [experiments](experiments.md)."""


def add(name, folders):
    """Put finished runs into a record; one of the same command is replaced."""
    file = FOLDER / "results" / f"{name}.json"
    record = json.loads(file.read_text("utf-8")) if file.exists() else {"title": name, "text": ""}
    if name == "table1":
        record |= reproduction.collect(folders[0], record)
    else:
        new = [reproduction.result(runs.Run.open(folder)) for folder in folders]
        said = {one["command"] for one in new}
        old = [one for one in record.get("runs", []) if one["command"] not in said]
        record["runs"] = old + new
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def render(records):
    """The page as Markdown, from `(name, record)`."""
    lines = [HEAD]
    for name, record in records:
        lines += ["", f"## {record['title']}", ""]
        if record.get("text"):
            lines += [record["text"], ""]
        lines += _table1(record) if name == "table1" else _runs(record["runs"])
    return "\n".join(lines) + "\n"


def _table1(record):
    made = [one for cell in record["cells"] for one in cell["runs"]]
    done = sum(bool(cell["runs"]) for cell in record["cells"])
    lines = ["| % error | " + " | ".join(reproduction.DISTORTIONS) + " |"]
    lines += ["|---" * (1 + len(reproduction.DISTORTIONS)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in reproduction.rows(record)]
    sizes = [one["parameters"] for one in made]
    times = [one["seconds"] for one in made]
    lines += [
        "",
        f"{done} of {len(record['cells'])} cells so far, {len(made)} runs; in brackets the "
        f"paper's. {min(sizes):,} to {max(sizes):,} parameters, {min(times)} to {max(times)} "
        f"seconds of training. {_where(made)}",
    ]
    return lines


def _runs(made):
    groups = {}
    for one in made:
        groups.setdefault(_without_seed(one["command"]), []).append(one)
    found = "mean_iou" in made[0]  # co-localization
    names = ["found", "mean overlap"] if found else ["test accuracy", "error"]
    lines = [f"| command | {' | '.join(names)} | seeds | parameters | epochs | training |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for command, group in groups.items():
        errors = [one["error"] for one in group]
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        second = f"{statistics.mean(errors):.2f} %"
        if found:
            second = f"{statistics.mean(one['mean_iou'] for one in group):.2f}"
        lines.append(
            f"| `{command}` | {100 - statistics.mean(errors):.2f}{spread} % "
            f"| {second} | {', '.join(str(one['seed']) for one in group)} "
            f"| {group[0]['parameters']:,} | {group[0]['epochs']} "
            f"| {statistics.mean(one['seconds'] for one in group):.0f} s |"
        )
    return [*lines, *_curve(made), "", _where(made)]


FULL = 697_932
"""Training images of the official EMNIST ByClass."""


def extrapolate(counts, errors, tests, full=FULL, draws=4000):
    """The error at more images, by the law `a + b n^-c`, as median and 90 % interval.

    Each point is drawn anew from what chance does to a test set of its size; the law is fitted to
    every draw, with c between 0.2 and 1, as learning curves have it, and a and b at least 0.
    """
    rng = np.random.default_rng(0)
    share = np.asarray(errors) / 100
    spread = np.sqrt(share * (1 - share) / np.asarray(tests))
    drawn = rng.normal(share, spread, (draws, len(share)))
    best, found = np.full(draws, np.inf), np.empty(draws)
    for power in np.linspace(0.2, 1, 33):
        basis = np.asarray(counts, "float64") ** -power
        b, a = np.polyfit(basis, drawn.T, 1)
        flat = b < 0
        b, a = np.where(flat, 0, b), np.where(flat, drawn.mean(1), a)
        slope = (drawn @ basis) / (basis @ basis)  # through a floor of 0
        b, a = np.where(a < 0, slope, b), np.where(a < 0, 0, a)
        left = np.square(a[:, None] + b[:, None] * basis - drawn).sum(1)
        better = left < best
        found[better] = (a + b * full**-power)[better]
        best[better] = left[better]
    return [float(100 * value) for value in np.quantile(found, [0.5, 0.05, 0.95])]


def points(made):
    """Training images, mean errors and test images of runs that differ in how many they had."""
    sizes = {}
    for one in made:
        if "--transform none" not in one["command"]:
            sizes.setdefault(one["train"], []).append(one)
    counts = sorted(sizes)
    errors = [statistics.mean(one["error"] for one in sizes[count]) for count in counts]
    # The seeds share their test images.
    return counts, errors, [sizes[count][0]["test"] for count in counts]


def draw(counts, errors, tests, path):
    """Draw a learning curve with the law through it, as far as the official training set."""
    from matplotlib.figure import Figure

    sizes = np.geomspace(min(counts) / 1.3, 1.3 * FULL, 40)
    middle, low, high = np.transpose([extrapolate(counts, errors, tests, n, 1000) for n in sizes])
    figure = Figure(figsize=(7, 3.6), dpi=150, facecolor="white")
    axis = figure.subplots()
    axis.fill_between(sizes, low, high, color="#1f5fae", alpha=0.15, lw=0)
    axis.plot(sizes, middle, color="#1f5fae", lw=1.5, ls=(0, (4, 2)), label="law, 90 % of draws")
    axis.plot(counts, errors, "o", color="#b93c0a", label="measured")
    axis.axvline(FULL, color="#8893a3", lw=1, ls=":")
    axis.text(FULL / 1.04, max(errors), "official set", ha="right", color="#5c6470", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlabel("training images")
    axis.set_ylabel("test error (%)")
    axis.grid(color="#e6e9ed")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


def _curve(made):
    counts, errors, tests = points(made)
    if len(counts) < 3:
        return []
    middle, low, high = extrapolate(counts, errors, tests)
    lines = ["", "| training images | test error |", "|---|---|"]
    lines += [f"| {n:,} | {error:.2f} % |" for n, error in zip(counts, errors, strict=True)]
    lines += [
        "",
        f"With all {FULL:,} official training images, a law a + b n^-c through these points has "
        f"{middle:.1f} % (90 % interval {low:.1f} to {high:.1f} %, of what chance does to the test "
        "images; whether the law holds so far out, and that the official test images are others, "
        "is not in it).",
        "",
        "![Test error over training images](images/learning-curve.png)",
    ]
    return lines


def _without_seed(command):
    words = command.split()
    if "--seed" in words:
        at = words.index("--seed")
        del words[at : at + 2]
    return " ".join(words)


def _where(made):
    days = sorted({str(one["started"])[:10] for one in made})
    places = sorted(set(map(_place, made)))
    revisions = sorted({one["revision"] or "without a revision" for one in made})
    return (
        f"{days[0]}{'' if len(days) == 1 else ' to ' + days[-1]}; {'; '.join(places)}; "
        f"source {', '.join(revisions)}."
    )


def _place(one):
    device = one.get("device") or "cpu"  # records of before 2026-11-27 do not say
    accelerator = "" if device == "cpu" else f"one {device} and "
    return f"{one['backend']}, {accelerator}{one['cores']} cores of {one['cpu']}"


def read(folder=FOLDER / "results"):
    """All records, by name: `(name, record)`."""
    return [
        (file.stem, json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*.json"))
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["add"]:
        add(sys.argv[2], sys.argv[3:])
    (FOLDER / "results.md").write_text(render(read()), "utf-8")
    draw(*points(dict(read())["emnist-byclass"]["runs"]), FOLDER / "images" / "learning-curve.png")
