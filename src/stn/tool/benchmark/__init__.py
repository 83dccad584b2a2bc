"""What the library costs, beside what others cost, in one process and taking turns.

`measure` runs one of `TOPICS` and returns a record for JSON: what was measured, where, and how. No
number in it is guessed: what could not be measured is `None`, or is listed with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stn.tool.config import UserError

FORMAT = 1
"""Version of the records."""

_MODULES = {"sampler": "sampler", "train": "steps", "predict": "stream", "import": "startup"}
TOPICS = tuple(_MODULES)
"""What can be measured."""

PEERS = {
    "torch": "torch",
    "kornia": "kornia",
    "keras": "keras",
    "opencv": "cv2",
    "scipy": "scipy",
}
"""Whom we measure ourselves against, and the module each one needs."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how thoroughly.

    Attributes:
        topic: One of `TOPICS`.
        peers: Some of `PEERS`.
        shapes: The images for the sampler, `(batch, height, width, channels)`; empty for its own.
        rounds: How often everybody takes a turn; None for what the topic thinks best.
        quick: Tiny shapes and few rounds, to see that it works; the numbers mean nothing.
    """

    topic: str = "sampler"
    peers: tuple[str, ...] = tuple(PEERS)
    shapes: tuple[tuple[int, ...], ...] = ()
    rounds: int | None = None
    quick: bool = False

    @classmethod
    def of(
        cls,
        topic: str,
        against: str | None = None,
        shapes: Iterable[str] | None = None,
        **others: Any,
    ) -> Options:
        """From the texts of the command line.

        Raises:
            UserError: If the topic or a peer is unknown, or a shape is none.
        """
        if topic not in TOPICS:
            raise UserError(f"Expected one of {tuple(TOPICS)}. Received: {topic!r}")
        names = tuple(PEERS)
        if against is not None:
            names = tuple(name.strip() for name in against.split(",") if name.strip())
        if not names or not set(names) <= set(PEERS):
            raise UserError(
                f"Expected --against to be some of {','.join(PEERS)}. Received: {against!r}"
            )
        return cls(topic, names, tuple(_read_shape(text) for text in shapes or ()), **others)


def measure(options: Options, progress: Any = None) -> dict[str, Any]:
    """Measure one topic on the backend that Keras runs on.

    Args:
        options: What to measure.
        progress: Where to say how far it is; nowhere by default.

    Returns:
        A record that JSON can hold: `topic`, `quick`, `environment`, and what the topic finds.
    """
    from stn.tool.benchmark import hardware
    from stn.tool.progress import Progress

    topic = import_module(f"stn.tool.benchmark.{_MODULES[options.topic]}")
    where = hardware.describe(options.topic, options.peers)  # before the load is our own
    found = topic.measure(options, progress or Progress(quiet=True))
    return {
        "format": FORMAT,
        "topic": options.topic,
        "quick": options.quick,
        "environment": where,
        **found,
    }


def _read_shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(part) if part.isdecimal() else 0 for part in text.split("x"))
    if len(shape) != 4 or min(shape) < 1:
        raise UserError(
            "Expected --shape to be BATCHxHEIGHTxWIDTHxCHANNELS, such as 64x28x28x3. "
            f"Received: {text!r}"
        )
    return shape
