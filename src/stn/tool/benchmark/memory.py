"""The most memory a call takes, in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_LEAST = 48 * 2**20  # bytes of images; what compiling takes must be small beside them
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str = "VmRSS") -> int | None:
    """Bytes of memory this process has now, or at most (`"VmHWM"`); None where Linux is not."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def measure(shape: tuple[int, ...], way: str, name: str, variant: str) -> dict[str, Any]:
    """The peak of one call of a contender, beyond the inputs.

    The result, the gradients and everything in between count. What a process has had it may keep
    (TensorFlow does), so it is the first call that counts, with all that compiling takes. That is
    the same for twice as many images: two processes, and the difference between them.

    Args:
        shape: Of the images; there will be more of them in a batch.
        way: One of `contenders.PASSES`.
        name: Of the contender.
        variant: Of the contender.

    Returns:
        `times`, the peak as a multiple of the bytes of images and result; or None, with a `reason`.
    """
    single = 4 * math.prod(shape[1:])
    few = math.ceil(_LEAST / single)
    peaks = []
    for count in (few, 2 * few):
        peak, reason = _start([[count, *shape[1:]], way, name, variant])
        if reason:
            return {"times": None, "reason": reason}
        peaks.append(peak)
    return {"times": (peaks[1] - peaks[0]) / (2 * few * single), "reason": None}


def _start(arguments: Any) -> tuple[int, str | None]:
    import keras

    # Large blocks go back to the system as soon as they are free.
    thrifty = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    code = "from stn.tool.benchmark import memory; memory.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=os.environ | thrifty | {"KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        return 0, f"exit code {done.returncode}: {last}"


def main() -> None:
    """What `measure` starts: the arguments are JSON, and so is the output."""
    from stn.tool.benchmark import contenders

    shape, way, name, variant = json.loads(sys.argv[1])
    case = contenders.Case.draw(shape, way)
    try:
        print(json.dumps([_peak(contenders.MAKERS[name](case)[variant]()), None]))
    except (OSError, NotImplementedError) as error:
        print(json.dumps([0, str(error)]))


def _peak(contender: Any) -> int:
    from stn.tool import environment

    if environment.has_accelerator():
        return _peak_of_device(contender)
    if resident() is None:
        raise NotImplementedError("Only Linux tells the peak of a process from some time on")
    before = resident() or 0
    _RESET.write_text("5", encoding="utf-8")
    results = contender.call()
    peak = resident("VmHWM") or 0
    del results
    return peak - before


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
