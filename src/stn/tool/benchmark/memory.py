"""The most memory a call takes, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str = "VmRSS") -> int | None:
    """Bytes of memory this process has now, or at most (`"VmHWM"`); None where Linux is not."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def measure(shape: tuple[int, ...], way: str, name: str, variant: str) -> dict[str, Any]:
    """The peak of one call of a contender, beyond what is there before it.

    The result, the gradients and everything in between count; the inputs do not.

    Args:
        shape: Of the images.
        way: One of `contenders.PASSES`.
        name: Of the contender.
        variant: Of the contender.

    Returns:
        `bytes`, and `times`, that as a multiple of the bytes of images and result; or both None,
        with a `reason`.
    """
    import keras

    # Large blocks go back to the system as soon as they are free; otherwise what the calls before
    # the one that is measured have left would serve it, and it would seem to take nothing.
    quick_to_return = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from stn.tool.benchmark import memory; memory.main()",
            json.dumps([shape, way, name, variant]),
        ],
        env=os.environ | quick_to_return | {"KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        return {"bytes": None, "times": None, "reason": f"exit code {done.returncode}: {last}"}


def main() -> None:
    """What `measure` starts: the arguments are JSON, and so is the output."""
    from stn.tool.benchmark import contenders

    shape, way, name, variant = json.loads(sys.argv[1])
    case = contenders.Case.draw(shape, way)
    contender = contenders.MAKERS[name](case)[variant]()
    contender.call()
    contender.call()
    try:
        found = {"bytes": _peak(contender), "reason": None}
        found["times"] = found["bytes"] / case.nbytes
    except (OSError, NotImplementedError) as error:
        found = {"bytes": None, "times": None, "reason": str(error)}
    print(json.dumps(found))


def _peak(contender: Any) -> int:
    from stn.tool import environment

    if environment.has_accelerator():
        return _peak_of_device(contender)
    if resident() is None:
        raise NotImplementedError("Only Linux tells the peak of a process from some time on")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before = resident() or 0
    _RESET.write_text("5", encoding="utf-8")
    results = contender.call()
    peak = resident("VmHWM") or 0
    del results
    return max(0, peak - before)


def _peak_of_device(contender: Any) -> int:
    if contender.planned is not None:
        return contender.planned()
    if "torch" not in sys.modules or not sys.modules["torch"].cuda.is_available():
        raise NotImplementedError("The backend does not tell what it takes on this device")
    cuda = sys.modules["torch"].cuda
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    results = contender.call()
    cuda.synchronize()
    peak = cuda.max_memory_allocated()
    del results
    return peak - before
