"""One image: where a model looks in it, what it makes of it, and what it takes it for."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from PIL import Image

from stn.tool import alignment, evaluation, examples, pictures, prediction, runs

CLASSES = 5  # shown, the most probable ones


def inspect(
    run: runs.Run | str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Look at what a model does with one image.

    Args:
        run: A run, its folder, or a `.keras` file in that folder.
        image: A file, as `stn.predict` takes it; of an animation the first frame.
        out: Where to write a picture of it, as PNG; nowhere by default.
        backend: Another backend than the run's.

    Returns:
        `image`, its path; `classes`, the most probable first, each with its `class` and its
        `probability`; `transform`, the family; and, if there is a transformer, its parameters
        `params`, what they do to the picture in numbers (`about`: degrees, factors, fractions of
        the image; None for what is not finite) and in plain `words`; of several heads a list of
        each. With `out` the path of the `picture`.

    Raises:
        UserError: If the run, the image or the place of the picture cannot be used.

    Example:
        >>> inspect("runs/affine", "seven.png")["words"]  # doctest: +SKIP
        'turned 31° left, zoomed 1.2x'
    """
    found, picture = look(run, image, backend=backend)
    if out is not None:
        pictures.save(picture, out)
        found["picture"] = str(Path(out))
    return found


def look(
    run: runs.Run | str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    backend: str | None = None,
) -> tuple[dict[str, Any], Image.Image]:
    """What `inspect` returns, and the picture of it."""
    run = evaluation.open_run(run)
    evaluation.check_task(run, "to look at one image", "classification")
    name, pixels = prediction.read_one(run, image)
    model = evaluation.load_model(run, backend or run.config.backend)
    transform, names = run.config.transform, run.dataset["class_names"]
    seen = examples.Probe(model, transform, 1).look(pixels[None], mesh=True)
    probabilities = seen.probabilities[0]
    order = (-probabilities).argsort(kind="stable")[:CLASSES]
    found: dict[str, Any] = {
        "image": name,
        "classes": [
            {"class": str(names[i]), "probability": float(probabilities[i])} for i in order
        ],
        "transform": transform,
    }
    if seen.looks:
        params = [[float(value) for value in head.params[0]] for head in seen.looks]
        about = [
            {key: value if math.isfinite(value) else None for key, value in head.about[0].items()}
            for head in seen.looks
        ]
        one = len(seen.looks) == 1
        found["params"], found["about"] = (params[0], about[0]) if one else (params, about)
        found["words"] = seen.tell(alignment.in_words)[0]
    head, *more = seen.drawn_of(0)
    picture = pictures.draw_inspection(
        pixels,
        *head,
        more=more,
        title=Path(name).name,
        words=found.get("words", "no transformer: the model sees the image as it is"),
        classes=[(one["class"], one["probability"]) for one in found["classes"]],
    )
    return found, picture
