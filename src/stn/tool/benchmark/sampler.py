"""Warping images: the time of a call beside others', and beside the least that memory allows."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stn.tool import environment
from stn.tool.benchmark import PEERS, Options, contenders, hardware, memory, timing
from stn.tool.benchmark.contenders import PASSES, Case, Contender, UnavailableError
from stn.tool.progress import Progress

SHAPES = ((1024, 28, 28, 1), (256, 60, 60, 1), (32, 224, 224, 3), (64, 28, 28, 64))
"""Images of the shapes that are measured: `(batch, height, width, channels)`."""
_FILLING = 32  # times as many images fill an accelerator

_GROWTH = {
    "pixels": tuple((64, size, size, 3) for size in (28, 56, 112, 224)),
    "channels": tuple((64, 28, 28, channels) for channels in (4, 16, 64, 256)),
    "images": tuple((count, 28, 28, 1) for count in (256, 1024, 4096, 16384)),
}
_QUICK_GROWTH = {"pixels": ((2, 4, 4, 1), (2, 8, 8, 1))}
_QUICK_SHAPES = ((4, 6, 7, 1),)
_QUICK_ROUNDS, _ROUNDS = 3, 15


def measure(options: Options, progress: Progress) -> dict[str, Any]:
    """Every shape and pass, everybody against everybody.

    Returns:
        `cases`, one record each, and `missing`: why a peer takes no part at all.
    """
    missing = {
        name: f"no module {PEERS[name]!r} is installed"
        for name in options.peers
        if importlib.util.find_spec(PEERS[name]) is None
    }
    present = [name for name in options.peers if name not in missing]
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    size, seconds = (2**20, 0.01) if options.quick else (2**28, 1.0)
    bandwidth = hardware.device_bandwidth(4 * size) or timing.copy_bandwidth(
        size, hardware.cores(), seconds=seconds
    )
    shapes = SHAPES
    if environment.has_accelerator():
        shapes += tuple((_FILLING * count, *rest) for count, *rest in SHAPES)
    cases = []
    weighed = set()  # memory grows with the number of channels, not otherwise
    for shape in options.shapes or (_QUICK_SHAPES if options.quick else shapes):
        for way in PASSES:
            with progress.step(f"{'x'.join(map(str, shape))} {way}"):
                case = Case.draw(shape, way)
                cases.append(
                    measure_case(
                        case,
                        present,
                        bandwidth=bandwidth,
                        rounds=rounds,
                        quick=options.quick,
                        weigh=shape[-1] not in weighed,
                    )
                )
        weighed.add(shape[-1])
    with progress.step("Growth"):
        growth = _measure_growth(rounds=rounds, quick=options.quick) if not options.shapes else []
    taken = [case["neighbors"] for case in cases if case["neighbors"] is not None]
    return {
        "rounds": rounds,
        "cases": cases,
        "growth": growth,
        "neighbors": max(taken, default=None),
        "missing": missing,
    }


def measure_case(
    case: Case,
    peers: Sequence[str],
    *,
    bandwidth: float,
    rounds: int,
    quick: bool = False,
    weigh: bool = True,
) -> dict[str, Any]:
    """One case: who agrees with us takes part, and takes turns with us; the memory of both."""
    _forget_compiled()
    able: dict[tuple[str, str], Contender] = {}
    left_out = []
    for name in ("stn", *peers):
        for variant, make in contenders.MAKERS[name](case).items():
            try:
                if quick and variant == "torch.compile":
                    raise UnavailableError("It compiles for longer than --quick may take")
                with warnings.catch_warnings():
                    # torch.compile looks into our cached functions, and says so every time.
                    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru")
                    able[name, variant] = make()
                    able[name, variant].call()
            except Exception as error:
                able.pop((name, variant), None)
                left_out.append(_left_out(name, variant, error))
    mine = next((one for (name, _), one in able.items() if name == "stn"), None)
    if mine is None:
        raise RuntimeError(f"Nothing of ours runs: {left_out}")
    truth = mine.results()
    errors = {}
    for key in list(able):
        contender = able[key]
        try:
            errors[key] = check(contender, truth)
        except UnavailableError as error:
            del able[key]
            left_out.append(_left_out(*key, error))
    calls = {"/".join(key): one.call for key, one in able.items()}
    neighbors = timing.Neighbors()
    seconds = timing.interleave(calls, rounds=rounds, least=1e-4 if quick else 0.02)
    taken = neighbors.share()

    floor = case.moved / bandwidth
    cached = None
    if not environment.has_accelerator():
        cached = case.moved / timing.copy_bandwidth(
            case.moved // 2, hardware.cores(), seconds=0.01 if quick else 0.2
        )
    entries = []
    for name, variant in able:
        spread = timing.spread(seconds[f"{name}/{variant}"])
        entries.append(
            {
                "name": name,
                "variant": variant,
                "seconds": spread,
                "share_of_floor": floor / spread["median"],
                "largest_errors": errors[name, variant],
            }
        )
    best = {}
    for entry in sorted(entries, key=lambda entry: entry["seconds"]["median"]):
        best.setdefault(entry["name"], entry["variant"])
    if weigh and case.way != "forward" and not quick:
        for entry in entries:
            name, variant = entry["name"], entry["variant"]
            if name in ("stn", "torch") and best[name] == variant:
                entry["memory"] = memory.measure(case.images.shape, case.way, name, variant)
    ratios = {
        name: {"ours": best["stn"], "theirs": variant}
        | timing.ratio(seconds[f"stn/{best['stn']}"], seconds[f"{name}/{variant}"])
        for name, variant in best.items()
        if name != "stn"
    }
    return {
        "shape": list(case.images.shape),
        "pass": case.way,
        "contenders": entries,
        "ratios": ratios,
        "left_out": left_out,
        "neighbors": taken,
        "floor": {
            "seconds": floor,
            "bytes": case.moved,
            "copied_per_second": bandwidth,
            "seconds_in_cache": cached,
        },
    }


def _measure_growth(*, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Our time for more and more pixels, channels and images; `power` is 1 where it is linear."""
    found = []
    for over, shapes in (_QUICK_GROWTH if quick else _GROWTH).items():
        for way in ("forward", "both"):
            _forget_compiled()
            calls: dict[str, Callable[[], Any]] = {}
            for shape in shapes:
                # The first variant is the one that is compiled, or native.
                make = next(iter(contenders.ours(Case.draw(shape, way)).values()))
                calls["x".join(map(str, shape))] = make().call
            seconds = timing.interleave(calls, rounds=rounds, least=1e-4 if quick else 0.02)
            medians = [timing.spread(values)["median"] for values in seconds.values()]
            values = [math.prod(shape) for shape in shapes]
            power = np.polyfit(np.log(values), np.log(medians), 1)[0]
            found.append(
                {
                    "over": over,
                    "pass": way,
                    "shapes": [list(shape) for shape in shapes],
                    "seconds": medians,
                    "power": float(power),
                }
            )
    return found


def check(contender: Contender, truth: list[np.ndarray]) -> dict[str, float]:
    """Compare what a contender computes with ours.

    Between two pixels, where the gradient of the parameters jumps, rounding decides on which side
    of the jump one is. So of that gradient it is the mean square error that must be small.

    Returns:
        The largest error of the result, and those of the gradients as shares of the largest value.

    Raises:
        UnavailableError: If it computes something else.
    """
    found, expected = contender.results(), contender.expect(truth)
    if contender.count is not None:
        found[1:2] = [gradient[:, : contender.count] for gradient in found[1:2]]
    errors = {}
    for name, one, other in zip(("result", "params", "images"), found, expected, strict=False):
        if one.shape != other.shape:
            raise UnavailableError(f"Its {name} is of shape {one.shape}, ours {other.shape}")
        difference, limit = np.abs(one.astype("float64") - other), contender.tolerance
        scale = 1.0 if name == "result" else max(float(np.abs(other).max()), 1e-30)
        errors[name] = error = float(difference.max()) / scale
        if name == "params":
            limit = 1e-2
            error = float(np.linalg.norm(difference) / max(np.linalg.norm(other), 1e-30))
        if not error <= limit:
            raise UnavailableError(
                f"It computes something else: {name} off by {error:.2g}, where {limit:g} would do"
            )
    return errors


def _left_out(name: str, variant: str, error: Exception) -> dict[str, str]:
    # TensorFlow names a graph by a number that is another one each time.
    reason = re.sub(r"__inference_\w+(\[[^]]*\])?", "", " ".join(str(error).split()))[:200]
    if not isinstance(error, UnavailableError):
        reason = f"{type(error).__name__}: {reason}"
    return {"name": name, "variant": variant, "reason": reason}


def _forget_compiled() -> None:
    """What was compiled for other cases: PyTorch gives up after eight."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].compiler.reset()
