"""Examples: a few images, where a transformer looks in each, and what it makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stn import grids, models
from stn.deformations import Deformation
from stn.tool import alignment
from stn.transforms import TRANSFORMS

_PARTS = ("straight", "params", "grid")  # as the layer gives them
_NOTHING = (None, None, ())


@dataclasses.dataclass(frozen=True)
class Look:
    """What one head of a transformer does to some images.

    Attributes:
        params: Parameters of the transformation, `(count, size)`.
        straight: The straightened images, `(count, height, width, channels)` in [0, 1].
        outlines: Points around the border of each sampling grid, in pixels of the input.
        lines: Lines inside the outlines, likewise; none where the outline says it all.
        about: What happened to each picture, as `stn.tool.alignment.describe` has it.
    """

    params: np.ndarray
    straight: np.ndarray
    outlines: np.ndarray
    lines: Sequence[np.ndarray]
    about: Sequence[Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a classifier makes of some images.

    Attributes:
        probabilities: `(count, classes)`.
        looks: One for each head of its transformer; none without a transformer.
    """

    probabilities: np.ndarray
    looks: Sequence[Look] = ()

    @property
    def drawn(self) -> list[tuple[Any, Any, Sequence[Any]]]:
        """What pictures show of each head: outputs, outlines and lines; Nones without any."""
        return [(one.straight, one.outlines, one.lines) for one in self.looks] or [_NOTHING]

    def drawn_of(self, index: int) -> list[tuple[Any, Any, Sequence[Any]]]:
        """The same of one image."""
        return [
            (one.straight[index], one.outlines[index], [line[index] for line in one.lines])
            for one in self.looks
        ] or [_NOTHING]

    def tell(self, words: Callable[[Mapping[str, float]], str]) -> list[str]:
        """What happened to each image, in words; of several heads one after the other.

        Args:
            words: What to say of one dictionary of `stn.tool.alignment.describe`.
        """
        said = [[words(about) for about in look.about] for look in self.looks]
        if len(said) == 1:
            return said[0]
        return [
            "; ".join(f"{head}: {text}" for head, text in enumerate(texts, 1))
            for texts in zip(*said, strict=True)
        ]


class Probe:
    """A classifier of `stn.classifier` that shows what its transformer does.

    It always sees the same number of images at a time, for every other would be compiled anew.

    Args:
        model: The classifier, with a transformer or without.
        transform: The name of its family, or `"none"`.
        batch_size: How many images it sees at a time; fewer are filled up.
    """

    def __init__(self, model: Any, transform: str, batch_size: int = 64):
        import keras

        outputs = {"probabilities": model.output}
        self._heads = 0
        if transform != "none":
            for head, look in enumerate(models.looks(model)):
                outputs |= {f"{name} {head}": x for name, x in zip(_PARTS, look, strict=True)}
                self._heads += 1
        self._bends = isinstance(TRANSFORMS.get(transform), Deformation)
        self._batch_size = batch_size
        self._model = keras.Model(model.input, outputs)
        self._model.compile(jit_compile=getattr(model, "jit_compile", False))

    def parts(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, list[list[np.ndarray]]]]:
        """Show it many images, some at a time.

        Args:
            images: uint8 `(count, height, width, channels)`.

        Yields:
            Of up to `batch_size` images the probabilities, and for each head what it gives, as
            `stn.models.looks` has it.
        """
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            count = len(part)
            padding = np.zeros((self._batch_size - count, *part.shape[1:]), part.dtype)
            found = {
                key: np.asarray(values)[:count]
                for key, values in self._model.predict_on_batch(
                    np.concatenate([part, padding])
                ).items()
            }
            yield (
                found["probabilities"],
                [[found[f"{name} {head}"] for name in _PARTS] for head in range(self._heads)],
            )

    def look(self, images: np.ndarray, *, mesh: bool = False) -> Seen:
        """Show what it makes of images.

        Args:
            images: uint8 `(count, height, width, channels)`.
            mesh: Draw lines inside the outlines even where the family cannot bend them.
        """
        probabilities, heads = zip(*self.parts(images), strict=True)
        size = images.shape[1:3]
        looks = []
        for head in zip(*heads, strict=True):
            straight, params, grid = map(np.concatenate, zip(*head, strict=True))
            lines = _inner_lines(grid, size) if mesh or self._bends else []
            about = alignment.describe(grid, size)
            looks.append(Look(params, straight, grids.outline(grid, size), lines, about))
        return Seen(np.concatenate(probabilities), looks)


def _inner_lines(grid: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Three rows and three columns of sampling grids, in pixels of the image they read."""
    axes = [grids.to_pixel(grid[..., i], n, False) for i, n in enumerate(reversed(size))]
    points = np.stack(axes, axis=-1)
    rows, columns = (
        np.unique(np.linspace(0, n - 1, 5)[1:-1].round().astype(int)) for n in grid.shape[1:3]
    )
    return [*(points[:, row] for row in rows), *(points[:, :, column] for column in columns)]
