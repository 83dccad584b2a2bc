"""Write docs/results.md from the records in docs/results/.

python docs/results.py                                  # write the page
python docs/results.py add emnist-byclass RUN [RUN ...]  # put finished runs into a record first
python docs/results.py add table1 FOLDER                 # the folder of `stn reproduce table1`
"""

import json
import statistics
import sys
from pathlib import Path

from stn.tool import reproduction, runs

FOLDER = Path(__file__).parent

HEAD = """\
# Results

Written by `python docs/results.py` from the records in `docs/results/`, which hold what the runs
themselves wrote: nothing here is typed by hand. A `±` is the standard deviation over seeds; without
one there was one seed, which says less than its digits. What failed, and how it was chosen, is in
[experiments](experiments.md)."""


def add(name, folders):
    """Put finished runs into a record; one of the same command is replaced."""
    file = FOLDER / "results" / f"{name}.json"
    record = json.loads(file.read_text("utf-8")) if file.exists() else {"title": name, "text": ""}
    if name == "table1":
        record |= reproduction.collect(folders[0])
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
    lines = ["| % error | " + " | ".join(reproduction.DISTORTIONS) + " |"]
    lines += ["|---" * (1 + len(reproduction.DISTORTIONS)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in reproduction.rows(record)]
    sizes = [one["parameters"] for one in made]
    times = [one["seconds"] for one in made]
    lines += [
        "",
        f"{len(made)} of {len(record['cells'])} cells and seeds so far; in brackets the paper's. "
        f"{min(sizes):,} to {max(sizes):,} parameters, {min(times)} to {max(times)} seconds of "
        f"training. {_where(made)}",
    ]
    return lines


def _runs(made):
    groups = {}
    for one in made:
        groups.setdefault(_without_seed(one["command"]), []).append(one)
    lines = ["| command | test accuracy | error | seeds | parameters | epochs | training |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for command, group in groups.items():
        errors = [one["error"] for one in group]
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        lines.append(
            f"| `{command}` | {100 - statistics.mean(errors):.2f}{spread} % "
            f"| {statistics.mean(errors):.2f} % | {', '.join(str(one['seed']) for one in group)} "
            f"| {group[0]['parameters']:,} | {group[0]['epochs']} "
            f"| {statistics.mean(one['seconds'] for one in group):.0f} s |"
        )
    return [*lines, "", _where(made)]


def _without_seed(command):
    words = command.split()
    if "--seed" in words:
        at = words.index("--seed")
        del words[at : at + 2]
    return " ".join(words)


def _where(made):
    days = sorted({str(one["started"])[:10] for one in made})
    places = sorted({f"{one['backend']}, {one['cores']} cores of {one['cpu']}" for one in made})
    revisions = sorted({str(one["revision"]) for one in made})
    return (
        f"{days[0]}{'' if len(days) == 1 else ' to ' + days[-1]}; {'; '.join(places)}; "
        f"source {', '.join(revisions)}."
    )


def read(folder=FOLDER / "results"):
    """All records, by name: `(name, record)`."""
    return [
        (file.stem, json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*.json"))
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["add"]:
        add(sys.argv[2], sys.argv[3:])
    (FOLDER / "results.md").write_text(render(read()), "utf-8")
