"""Timing several things against each other on a machine that is never quite idle.

Whatever disturbs one of them for a while disturbs its neighbors in time as much. So all take turns,
and what is quoted is the median over the rounds of the ratio of two that ran next to each other.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_SLOW = 0.5  # seconds; a call that takes longer is not repeated within a round


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    least: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls that take turns, after each has run twice.

    Args:
        calls: What to call; each returns when its work is done.
        rounds: How many turns each one has.
        least: Seconds a turn takes at least: short calls are repeated within it.
        clock: Where the time is read.

    Returns:
        For each call its seconds in each round.
    """
    blocks = {}
    for name, call in calls.items():
        call()
        begun = clock()
        call()
        once = max(clock() - begun, 1e-9)
        repeats = min(1000, math.ceil(least / once))

        def block(
            call: Callable[[], Any] = call, repeats: int = repeats, slow: bool = once > _SLOW
        ) -> float:
            if not slow:
                call()  # the caches, and threads that wait for work, are still the neighbor's
            begun = clock()
            for _ in range(repeats):
                call()
            return (clock() - begun) / repeats

        blocks[name] = block
    return take_turns(blocks, rounds=rounds, warm=False)


def take_turns(
    blocks: Mapping[str, Callable[[], float]], *, rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """Run blocks, each of which says how many seconds it took, by turns.

    Args:
        blocks: What to run.
        rounds: How many turns each one has.
        warm: Run each once before, and forget that.

    Returns:
        For each block its seconds in each round.
    """
    if warm:
        for block in blocks.values():
            block()
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            gc.collect()
            # Forward and backward by turns, so that nobody always follows the same neighbor.
            for name in list(blocks)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(blocks[name]())
    finally:
        if was_enabled:
            gc.enable()
    return seconds


class Neighbors:
    """What other processes take of the processor from now on.

    Turns make ratios immune to what slows everybody down alike. But a library whose threads wait
    for each other, as PyTorch's do, is slowed down far more by a neighbor than one whose threads do
    not: with neighbors there is no fair comparison.
    """

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float | None:
        """Their share of the time of all cores since the beginning; None where Linux is not."""
        now = self._read()
        if now is None or self._before is None:
            return None
        others, total = (b - a for a, b in zip(self._before, now, strict=True))
        return min(max(0.0, others / total), 1.0) if total > 0 else 0.0  # but for rounding

    def _read(self) -> tuple[float, float] | None:
        """Seconds that others worked, and all seconds there were, on all cores together."""
        try:
            line = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
        except OSError:
            return None
        user, nice, system, idle, waiting, *rest = (int(text) for text in line.split()[1:9])
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4])
        return busy - own, busy + (idle + waiting) / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the quartiles, and the fastest."""
    fastest, low, median, high = np.percentile(values, [0, 25, 50, 75])
    return {
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "fastest": float(fastest),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times the time of another we take: the median of the ratios round by round.

    Returns:
        `median`, and `low` and `high`, within which the true median lies with `confidence`: the
        order statistics that have at least 95 %, or all there is if the rounds are too few.
        `of_fastest` is the ratio of the fastest turns.
    """
    paired = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    count = len(paired)
    below, tail = 0, 0.0  # how many to leave out at each end, and how likely the median is there
    while below < (count - 1) // 2:
        more = tail + math.comb(count, below) / 2**count
        if 2 * more > 0.05:
            break
        below, tail = below + 1, more
    left_out = max(0, below - 1)
    outside = sum(math.comb(count, i) for i in range(left_out + 1)) / 2**count
    return {
        "median": float(np.median(paired)),
        "low": paired[left_out],
        "high": paired[count - 1 - left_out],
        "confidence": max(0.0, 1 - 2 * outside),
        "of_fastest": min(ours) / min(theirs),
    }


def copy_bandwidth(size: int, cores: int, *, seconds: float = 0.2) -> float:
    """Bytes read and written a second when all cores copy arrays, `size` bytes in all.

    Args:
        size: Bytes of the arrays that are read; as many are written. What fits into the caches of
            the processor is copied faster than what does not.
        cores: How many copy at the same time.
        seconds: How long to measure.
    """
    parts = [np.ones(max(1, size // cores), np.uint8) for _ in range(cores)]
    targets = [np.zeros_like(part) for part in parts]
    repeats = max(1, int(2e7 * cores / max(size, 1)))  # of short copies, at a time

    def copy(i: int) -> None:
        for _ in range(repeats):
            np.copyto(targets[i], parts[i])

    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(copy, range(cores)))
        end = time.perf_counter() + seconds
        while True:
            begun = time.perf_counter()
            list(pool.map(copy, range(cores)))
            now = time.perf_counter()
            best = max(best, 2 * sum(part.nbytes for part in parts) * repeats / (now - begun))
            if now > end:
                return best
