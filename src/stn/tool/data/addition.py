"""Sums of two digits: pairs of images, each in channels of its own (Jaderberg et al. 2015, A.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stn.tool.config import UserError
from stn.tool.data import Split


def sums(class_names: Sequence[str]) -> tuple[str, ...]:
    """The names of the sums of two digits.

    Args:
        class_names: Those of the digits: 0, 1 and so on.

    Raises:
        UserError: If the classes are something else.

    Example:
        >>> sums("012")
        ('0', '1', '2', '3', '4')
    """
    if list(class_names) != [str(digit) for digit in range(len(class_names))]:
        some = ", ".join(class_names[:12])
        raise UserError(
            f"Expected classes 0, 1, 2 and so on, to add them. Received: {some}; use --data mnist"
        )
    return tuple(str(total) for total in range(2 * len(class_names) - 1))


def pair(first: Split, second: Split) -> Split:
    """Put the images of two splits of the same length behind each other, and add their labels.

    Example:
        >>> digits = Split(np.zeros((3, 2, 2, 1), "uint8"), np.array([1, 2, 3], "int32"))
        >>> pairs = pair(digits, digits.take([2, 0, 0]))
        >>> pairs.images.shape, pairs.labels.tolist()
        ((3, 2, 2, 2), [4, 3, 4])
    """
    images = np.concatenate([first.images, second.images], axis=-1)
    return Split(images, first.labels + second.labels)


def pair_all(split: Split, seed: Any) -> Split:
    """Pair each image of a split with another one at random, so that each is used twice.

    Args:
        split: The digits.
        seed: Anything `numpy.random.default_rng` takes.
    """
    return pair(split, split.take(np.random.default_rng(seed).permutation(len(split))))
