"""On what, and with whom, something was measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import keras

from stn.tool import environment
from stn.tool.benchmark import timing

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "kornia": ("kornia",),
    "keras": ("keras",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "scipy": ("scipy",),
}


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(topic: str, against: Iterable[str]) -> dict[str, Any]:
    """Hardware, versions, threads, date and command."""
    found = environment.describe(otherwise=f"stn bench {topic}")
    del found["format"]
    return found | {
        "threads": cores(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "peers": {name: version(name) for name in against},
    }


def device_bandwidth(size: int) -> float | None:
    """Bytes read and written a second when the accelerator copies `size` bytes.

    None where there is no accelerator, or on a backend for which this is not written.
    """
    if not environment.has_accelerator():
        return None
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        source = jax.numpy.zeros(size // 4, "float32")
        add = jax.jit(lambda values: values + 1)  # a bare copy might be compiled to nothing

        def copy() -> None:
            jax.block_until_ready(add(source))
    elif backend == "torch":
        import torch

        if not torch.cuda.is_available():
            return None
        source = torch.zeros(size // 4, device="cuda")
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)
            torch.cuda.synchronize()
    else:
        return None
    seconds = timing.interleave({"copy": copy}, rounds=10)["copy"]
    return 2 * size / min(seconds)


def version(peer: str) -> str | None:
    """The installed version of a peer; None if it is missing."""
    return environment.installed_version(*_DISTRIBUTIONS[peer])
