"""The wall: test images, the worst mistakes among them, and what a transformer makes of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from stn.tool import alignment, pages, pictures, runs
from stn.tool.config import Stream

COUNT = 24  # of each kind


def one_of_each(labels: np.ndarray, count: int, seed: Any) -> np.ndarray:
    """Indices of some examples, of as many classes as can be; fixed by the seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    first = rng.permutation(first)
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([first, rest])[:count]]


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the mistakes, those first whose wrong class was believed in the most."""
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(-1), kind="stable")][:count]


def hang(
    run: runs.Run,
    probe: Any,
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    seed: int,
) -> None:
    """Keep some test images and the worst mistakes, with what the transformer makes of them.

    Args:
        run: Where; its `wall_file`, an archive of arrays, is written.
        probe: Of the model.
        images: uint8 `(count, height, width, channels)`.
        labels: `(count,)` integers.
        probabilities: What the model says of them, `(count, classes)`.
        seed: Chooses the images. They are the same for every run on the same data and seed.
    """
    some = one_of_each(labels, COUNT, (seed, Stream.WALL))
    worst = worst_mistakes(probabilities, labels, COUNT)
    chosen = np.concatenate([some, worst])
    seen = probe.look(images[chosen])
    arrays: dict[str, Any] = {
        "index": chosen,
        "worst": np.arange(len(chosen)) >= len(some),
        "inputs": images[chosen],
        "labels": labels[chosen],
        "guesses": probabilities[chosen].argmax(-1),
        "probabilities": probabilities[chosen].max(-1),
    }
    if seen.looks:
        arrays["words"] = np.array(seen.tell(alignment.in_words))
    for head, look in enumerate(seen.looks):
        of = _of(head)
        arrays[f"outputs{of}"] = np.rint(np.clip(look.straight, 0, 1) * 255).astype("uint8")
        arrays[f"outlines{of}"] = look.outlines
        if look.lines:
            arrays[f"lines{of}"] = np.stack(look.lines, axis=1)
    with runs.atomic(run.wall_file) as temporary:
        np.savez_compressed(temporary, **arrays)


def _of(head: int) -> str:
    """What the names of the arrays of a head end with."""
    return f"_{head + 1}" if head else ""


def cards(run: runs.Run, *, worst: bool) -> list[dict[str, Any]]:
    """What hangs on the wall of a run, as the templates take it.

    Args:
        run: A run; one without a wall has no cards.
        worst: The worst mistakes, instead of some images of as many classes as can be.

    Returns:
        For each image the picture, as from `stn.tool.pages.embed`; its `index` among the test
        images, the names of the `true` class and of the `guess`, whether that is `right`, its
        probability as `percent`, and in `words` what the transformer did, if there is one.
    """
    if not run.wall_file.exists():
        return []
    # Opened here: of a damaged archive NumPy would leave the file open.
    with (
        runs.reading(run.wall_file),
        run.wall_file.open("rb") as file,
        np.load(file) as archive,
    ):
        kept = archive["worst"] == worst
        found = {key: archive[key][kept] for key in archive.files}
        for key in ("index", "inputs", "labels", "guesses", "probabilities"):
            found[key]  # is it there?
    names = run.dataset["class_names"]
    shown = []
    heads = sum(name.startswith("outputs") for name in found)
    for i, index in enumerate(found["index"]):
        drawn = []
        for head in range(max(heads, 1)):
            output, outline, lines = (
                found[key][i] if (key := f"{name}{_of(head)}") in found else None
                for name in ("outputs", "outlines", "lines")
            )
            drawn.append((output, outline, () if lines is None else lines))
        (output, outline, lines), *more = drawn
        picture = pictures.draw_example(found["inputs"][i], output, outline, lines=lines, more=more)
        shown.append(
            pages.embed_picture(picture)
            | {
                "index": int(index),
                "true": str(names[found["labels"][i]]),
                "guess": str(names[found["guesses"][i]]),
                "right": bool(found["labels"][i] == found["guesses"][i]),
                "percent": f"{found['probabilities'][i]:.0%}",
                "words": str(found["words"][i]).replace(" %", "\u00a0%")
                if "words" in found
                else "",
            }
        )
    return shown
