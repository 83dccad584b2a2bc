"""Write docs/benchmarks.md from the records in docs/benchmarks/, and draw the curves in them.

python docs/benchmarks.py
"""

import json
from pathlib import Path

import matplotlib

from stn.tool.benchmark import tables

matplotlib.use("agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
TOPICS = ("sampler", "train", "predict", "import")
PASSES = {"forward": "forward", "theta": "to the parameters", "both": "to both"}

HEAD = """\
# Benchmarks

Written by `python docs/benchmarks.py` from the records in `docs/benchmarks/`, which `stn bench`
made. All contenders run in one process and take turns; a time is the median of the turns, a ratio
the median of the ratios turn by turn, with its 95 % interval. Whoever is compared has computed the
same as we have: results, and gradients where there are any.

Ratios of times, ours to theirs: below 1 we are faster. A peer with several variants takes part with
its fastest, and so do we. PyTorch has its images with the channels first, which it likes best; we
have them last. The floor is what copying the bytes takes that must be read and written at least,
with all cores, out of main memory; what stays in the caches can be faster than that. Memory is the
peak of one call beyond its inputs, as a multiple of images and result together."""


def read(folder=FOLDER / "benchmarks"):
    """All records, by topic and then by name of the file: `(name, record)`."""
    found = [(file.stem, json.loads(file.read_text("utf-8"))) for file in folder.glob("*.json")]
    return sorted(found, key=lambda one: (TOPICS.index(one[1]["topic"]), one[0]))


def render(records):
    """The page as Markdown."""
    lines = [HEAD]
    topic = None
    for name, record in records:
        if record["topic"] != topic:
            topic = record["topic"]
            lines += ["", f"## {topic}"]
        where = record["environment"]
        peers = ", ".join(
            f"{peer} {version}" for peer, version in where["peers"].items() if version is not None
        )
        lines += [
            "",
            f"### {NAMES[where['backend']]}, {tables.hardware(where)}",
            "",
            f"`{where['command']}`, {where['started'][:10]}, stn {where['stn']}"
            f" ({where['revision']}), Python {where['python']}, Keras {where['keras']}, "
            f"{NAMES[where['backend']]} {where['backend_version']}; {peers}. "
            f"[Record](benchmarks/{name}.json)",
            "",
            *RENDERERS[topic](name, record),
        ]
        if warning := tables.busy(record):
            lines += ["", f"**{warning}.**"]
        missing = record["missing"]
        lines += [f"\n{who} is missing: {reason}." for who, reason in missing.items()]
    return "\n".join(lines) + "\n"


def table(head, rows):
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def times(ratio):
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} - {ratio['high']:.2f})"


def render_sampler(name, record):
    peers = sorted({peer for case in record["cases"] for peer in case["ratios"]})
    rows = []
    for case in record["cases"]:
        best = {}
        for entry in sorted(case["contenders"], key=lambda entry: entry["seconds"]["median"]):
            best.setdefault(entry["name"], entry)
        mine = best["stn"]
        memory = mine.get("memory") or {"times": None}
        rows.append(
            [
                "x".join(map(str, case["shape"])),
                PASSES[case["pass"]],
                f"{tables.duration(mine['seconds']['median'])}, {mine['variant']}",
                f"{mine['share_of_floor']:.0%}",
                "" if memory["times"] is None else f"{memory['times']:.1f}",
                *(
                    f"{times(case['ratios'][peer])}, {case['ratios'][peer]['theirs']}"
                    if peer in case["ratios"]
                    else ""
                    for peer in peers
                ),
            ]
        )
    yield from table(["images", "pass", "ours", "of the floor", "memory", *peers], rows)
    if record["growth"]:
        yield f"\n![Our time over pixels, channels and images](images/benchmarks-{name}.png)"
        powers = ", ".join(
            f"{curve['over']} {curve['power']:.2f} ({PASSES[curve['pass']]})"
            for curve in record["growth"]
        )
        yield f"\nTime grows as this power of the number of values, 1 being linear: {powers}."
    reasons = tables.left_out(record["cases"])
    if reasons:
        yield "\nNot compared:\n"
        yield from (f"- {reason} ({', '.join(where)})" for reason, where in reasons.items())


def render_train(name, record):
    yield f"Batches of {record['batch']}. Ratios of images a second: above 1 we are faster.\n"
    rows = [
        [
            step,
            tables.duration(found["seconds"]["median"]),
            f"{found['images_per_second']:,.0f}",
            times(record["ratios"][step]) if step in record["ratios"] else "",
        ]
        for step, found in record["steps"].items()
    ]
    yield from table(["model", "step", "images/s", "to the tutorial's"], rows)
    yield ""
    rows = [
        [
            kind,
            f"{found['stn']['images_per_second']:,.0f}",
            f"{found['opencv']['images_per_second']:,.0f}" if "opencv" in found else "",
            times(found["ratio"]) if "ratio" in found else "",
        ]
        for kind, found in record["distortions"].items()
    ]
    yield from table(["distortion", "images/s", "OpenCV, a loop", "ratio"], rows)
    shares = record["monitor"]["shares"].items()
    yield (
        f"\nChanging the images at random takes {tables.share(record['input_share'])} of a step of "
        "`compact`. The monitor's picture takes "
        f"{tables.duration(record['monitor']['seconds']['median'])}: "
        + ", ".join(f"{value:.2%} of an epoch of {data}" for data, value in shares)
        + f". {tables.first_step(record).capitalize()}."
    )


def render_predict(name, record):
    rows = []
    for stream, found in record["streams"].items():
        before = 0
        for mark in found["marks"]:
            seconds = mark["processor_seconds"] / (mark["images"] - before)
            memory = mark["resident_bytes"]
            rows.append(
                [
                    "" if before else stream,
                    f"{mark['images']:,}",
                    f"{mark['images_per_second']:,.0f}",
                    tables.duration(seconds),
                    "" if memory is None else f"{memory / 2**20:,.0f} MiB",
                ]
            )
            before = mark["images"]
    yield from table(["stream", "images", "images/s", "processor time an image", "memory"], rows)


def render_import(name, record):
    rows = [
        [
            f"`{what}`",
            tables.duration(found["seconds"]["median"]),
            tables.duration(found["processor_seconds"]["median"]),
        ]
        for what, found in record["starts"].items()
    ]
    yield from table(["new process", "time", "processor time"], rows)
    yield f"\n{tables.first_step(record).capitalize()}."


RENDERERS = {
    "sampler": render_sampler,
    "train": render_train,
    "predict": render_predict,
    "import": render_import,
}


def draw_growth(name, record):
    """Our time over the number of values, on logarithmic axes, beside what would be linear."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
    for axis, over in zip(axes, ("pixels", "channels", "images"), strict=True):
        for curve in (curve for curve in record["growth"] if curve["over"] == over):
            values = [shape[0] * shape[1] * shape[2] * shape[3] for shape in curve["shapes"]]
            milliseconds = [1e3 * seconds for seconds in curve["seconds"]]
            (line,) = axis.loglog(values, milliseconds, "o-", label=PASSES[curve["pass"]])
            linear = [milliseconds[-1] * value / values[-1] for value in values]
            axis.loglog(values, linear, ":", color=line.get_color(), alpha=0.6)
        axis.set_xlabel(f"values, more {over}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(frameon=False)
    figure.savefig(FOLDER / "images" / f"benchmarks-{name}.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    found = read()
    for name, record in found:
        if record.get("growth"):
            draw_growth(name, record)
    (FOLDER / "benchmarks.md").write_text(render(found), encoding="utf-8")
