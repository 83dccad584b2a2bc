"""Distortions of whole data sets, through our own warp.

The named ones follow Jaderberg et al. 2015, section 4.1 and appendix A.4, where images are 28x28;
canvases and shifts grow in proportion for other sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PIXELS = 1 << 22  # in the images that are worked on in one go


@dataclass(frozen=True)
class Distortion:
    """How images are drawn anew, each with its own random transformation.

    What is affine is applied to the image first, then what moves the corners, then what bends.

    Attributes:
        angle: Largest rotation either way, in degrees.
        scale: Smallest and largest magnification.
        shear: Largest shear either way, as a factor.
        shift: Largest translation either way, as a fraction of the image.
        corners: Standard deviation of the shift of each corner along each axis, as a fraction of
            the image: a projective transformation. Corners that no longer span a quadrilateral
            worth the name are drawn again (about one image in a hundred with 5/28).
        control: The same of 16 points on a regular 4x4 grid over the result, as a fraction of the
            result: a thin-plate spline.
        canvas: Size of the result as a multiple of the image; in a larger canvas the image is
            placed anywhere it fits.
        distractors: Number of patches of other images scattered over the canvas.
        padding: What is beyond the image; see `stn.sample`.
        fill_value: With `padding="constant"`, the color beyond it, 0 to 255, one value per channel.
        apart: Whether each channel is an image of its own, and drawn by itself.
        first: Small changes before all others, read in one go with them.
    """

    angle: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    shift: float = 0.0
    corners: float = 0.0
    control: float = 0.0
    canvas: float = 1.0
    distractors: int = 0
    padding: str = "zeros"
    fill_value: tuple[float, ...] = (0.0,)
    apart: bool = False
    first: Distortion | None = None

    @property
    def idle(self) -> bool:
        """Whether images stay as they are."""
        beyond = {"padding": "zeros", "fill_value": (0.0,)}  # of which nothing is seen
        return dataclasses.replace(self, apart=False, **beyond) == Distortion()

    @property
    def families(self) -> tuple[str, ...]:
        """The families of transformations, the one applied to the image first comes first."""
        own = "affine", *["projective"] * (self.corners > 0), *["tps"] * (self.control > 0)
        return (*(self.first.families if self.first else ()), *own)

    def on(self, background: Sequence[float] | np.ndarray | None) -> Distortion:
        """This distortion of images on such a background, which goes on beyond them.

        Args:
            background: A color, 0 to 255, one value per channel; None for images on different ones,
                such as photographs, which have zeros beyond them.

        Example:
            >>> DISTORTIONS["R"].on([255.0]).padding
            'constant'
        """
        if background is None or not any(background):
            return self
        color = tuple(float(value) for value in background)
        return dataclasses.replace(self, padding="constant", fill_value=color)

    def after(self, small: Distortion) -> Distortion:
        """This distortion of images that were changed a little before, read in one go.

        Bends are not made before, but with those of this one, on the same grid: displacements of
        its points add up, and so do their variances.
        """
        if self.idle:
            return dataclasses.replace(small, apart=self.apart)
        return dataclasses.replace(
            self,
            first=dataclasses.replace(small, control=0.0),
            control=math.hypot(self.control, small.control),
        )

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The `(height, width)` of the result for images of this size."""
        return round(size[0] * self.canvas), round(size[1] * self.canvas)

    def params(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Draw parameters.

        Args:
            count: Number of images.
            size: `(height, width)` of the images.
            rng: Where the randomness comes from.

        Returns:
            Float32 `(count, size)` for the composition of `families`, from canvas to image.
        """
        angle = np.deg2rad(rng.uniform(-self.angle, self.angle, count))
        scale = rng.uniform(*self.scale, count)
        shear = rng.uniform(-self.shear, self.shear, count)
        extent = np.array(size[::-1], dtype="float64")  # pixels along x, y
        canvas = np.array(self.output_size(size)[::-1], dtype="float64")
        room = np.maximum(canvas - scale[:, None] * extent, 0) if self.canvas > 1 else 0.0
        shift = rng.uniform(-1, 1, (count, 2)) * (room / 2 + self.shift * extent)

        # Pixel offsets from the center, from the image to the canvas: turn, shear and magnify.
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        slant = np.tile(np.eye(2), (count, 1, 1))
        slant[:, 0, 1] = shear
        back = np.linalg.inv(scale[:, None, None] * turn @ slant)
        linear = back * canvas / extent[:, None]
        offset = -(back @ shift[:, :, None])[:, :, 0] / (extent / 2)
        params = [self.first.params(count, size, rng)] if self.first else []
        params.append(np.concatenate([linear, offset[:, :, None]], -1).reshape(count, 6))
        if self.corners:
            params.append(_homography(_draw_corners(count, 2 * self.corners, rng)))
        if self.control:
            params.append(rng.normal(0, 2 * self.control, (count, 32)))
        return np.concatenate(params, -1).astype("float32")

    def __call__(self, images: np.ndarray, *rngs: np.random.Generator) -> np.ndarray:
        """Distort a batch.

        Args:
            images: uint8 `(count, height, width, channels)`.
            *rngs: Where the randomness comes from; the same state gives the same result. Of
                several, each draws for an equal share of the images, as if called for it alone.

        Returns:
            uint8 `(count, *output_size, channels)`.
        """
        if self.apart and images.shape[-1] > 1:
            channels = np.split(images, images.shape[-1], axis=-1)
            return np.concatenate([self(one, *rngs) for one in channels], axis=-1)
        size = images.shape[1:3]
        output_size = self.output_size(size)
        outside = self.padding, self.fill_value
        warp = _compiled_warp(images.shape[1:], output_size, self.families, *outside)
        shares = np.split(images, len(rngs))
        params = [self.params(len(one), size, rng) for one, rng in zip(shares, rngs, strict=True)]
        warped = warp(images, np.concatenate(params))
        if self.distractors:
            for canvas, one, rng in zip(np.split(warped, len(rngs)), shares, rngs, strict=True):
                light = self.padding == "constant" and bool(np.mean(self.fill_value) > 127)
                scatter(canvas, one, self.distractors, rng, light=light)
        return warped


def scatter(
    canvas: np.ndarray,
    sources: np.ndarray,
    patches: int,
    rng: np.random.Generator,
    *,
    light: bool = False,
) -> np.ndarray:
    """Scatter patches of images over canvases, in place; where two meet, the brighter one shows.

    Args:
        canvas: uint8 `(count, height, width, channels)`.
        sources: The images to take patches of, uint8; each patch is 6 pixels of 28 wide.
        patches: How many on each canvas.
        rng: Where the randomness comes from.
        light: Whether the images are dark on light, so that the darker one shows.

    Returns:
        The canvases.
    """
    count = len(canvas)
    number, height, width = sources.shape[:3]
    patch = max(1, round(min(height, width) * 6 / 28))
    steps = np.arange(patch)
    for _ in range(patches):
        chosen = rng.integers(number, size=count)
        rows, columns = (rng.integers(n - patch + 1, size=count) for n in (height, width))
        to_rows, to_columns = (rng.integers(n - patch + 1, size=count) for n in canvas.shape[1:3])
        pieces = sources[
            chosen[:, None, None],
            rows[:, None, None] + steps[:, None],
            columns[:, None, None] + steps,
        ]
        where = (
            np.arange(count)[:, None, None],
            to_rows[:, None, None] + steps[:, None],
            to_columns[:, None, None] + steps,
        )
        canvas[where] = (np.minimum if light else np.maximum)(canvas[where], pieces)
    return canvas


DISTORTIONS: dict[str, Distortion] = {
    "none": Distortion(),
    "R": Distortion(angle=90),
    "RTS": Distortion(angle=45, scale=(0.7, 1.2), canvas=42 / 28),
    "P": Distortion(scale=(0.75, 1.0), corners=5 / 28),
    "E": Distortion(scale=(0.75, 1.0), control=1.5 / 28),
    "T": Distortion(canvas=60 / 28),
    "TC": Distortion(canvas=60 / 28, distractors=6),
}
"""The named distortions: rotation (R), with translation and scale (RTS), projective (P), elastic
(E), translation (T), and translation among clutter (TC)."""


def augmentation(strength: float, elastic: float = 0.0, padding: str = "zeros") -> Distortion:
    """Small random changes for training.

    Args:
        strength: 1 turns up to 10 degrees, scales and shears up to 10 %, shifts up to 5 %; other
            values in proportion.
        elastic: 1 bends as the distortion E does: 16 points of a grid are moved by 1.5 pixels of 28
            in the standard deviation; other values in proportion.
        padding: What is beyond the image; see `stn.sample`.

    Example:
        >>> augmentation(0.5).angle
        5.0
    """
    return Distortion(
        angle=10 * strength,
        scale=(1 - 0.1 * strength, 1 + 0.1 * strength),
        shear=0.1 * strength,
        shift=0.05 * strength,
        control=1.5 / 28 * elastic,
        padding=padding,
    )


def at_once(size: tuple[int, int]) -> int:
    """How many images of a size are worked on in one go: 1,024, or fewer of large ones.

    A power of two, as compiled functions want their batches.

    Example:
        >>> at_once((28, 28)), at_once((224, 224))
        (1024, 64)
    """
    return max(1, min(1024, 1 << int(math.log2(max(1, _PIXELS / math.prod(size))))))


def distort_all(
    images: np.ndarray, distortion: Distortion, seed: Any, *, chunk: int | None = None
) -> np.ndarray:
    """Distort a whole split, fixed by the seed.

    Args:
        images: uint8 `(count, height, width, channels)`.
        distortion: What to do; images are returned as they are if it does nothing.
        seed: Anything `numpy.random.default_rng` takes.
        chunk: Images at a time; by default as many as `at_once` says.

    Returns:
        uint8 `(count, *output_size, channels)`.
    """
    if distortion.idle:
        return images
    rng = np.random.default_rng(seed)
    size = distortion.output_size(images.shape[1:3])
    result = np.empty((len(images), *size, images.shape[-1]), "uint8")
    chunk = chunk or at_once(size)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        result[start : start + len(part)] = distortion(part, rng)
    return result


def warp_images(
    images: np.ndarray,
    params: np.ndarray,
    output_size: tuple[int, int],
    background: Sequence[float] | None = None,
) -> np.ndarray:
    """Warp a batch by given affine parameters, compiled once for each shape.

    Args:
        images: uint8 `(count, height, width, channels)`.
        params: Float32 `(count, 6)`.
        output_size: `(height, width)` of the result.
        background: See `Distortion.on`.

    Returns:
        uint8 `(count, *output_size, channels)`.
    """
    beyond = Distortion().on(background)
    outside = beyond.padding, beyond.fill_value
    warp = _compiled_warp(images.shape[1:], output_size, ("affine",), *outside)
    result = np.empty((len(images), *output_size, images.shape[-1]), "uint8")
    chunk = at_once(output_size)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        result[part] = warp(images[part], params[part])
    return result


_CORNERS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _draw_corners(count: int, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Move the corners of images, to `(count, 4, 2)` normalized points."""
    moved = _CORNERS + rng.normal(0, deviation, (count, 4, 2))
    while (folded := _least_triangle(moved) < 0.1).any():
        moved[folded] = _CORNERS + rng.normal(0, deviation, (folded.sum(), 4, 2))
    return moved


def _least_triangle(corners: np.ndarray) -> np.ndarray:
    """The smallest triangle of a corner and its neighbors; 1 in the image, below 0 if folded."""
    side = np.roll(corners, -1, axis=1) - corners
    following = np.roll(side, -1, axis=1)
    area = side[..., 0] * following[..., 1] - side[..., 1] * following[..., 0]
    return area.min(axis=1) / 4


def _homography(corners: np.ndarray) -> np.ndarray:
    """The projective parameters, `(count, 8)`, that map given points to the corners of the image.

    A transform maps from the result back to the image, so the image's corners come out at these.
    """
    point = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], -1)
    rows = np.zeros((len(corners), 4, 2, 8))
    rows[:, :, 0, :3] = rows[:, :, 1, 3:6] = point
    rows[..., 6:] = -_CORNERS[..., None] * corners[:, :, None]
    return np.linalg.solve(rows.reshape(-1, 8, 8), _CORNERS.reshape(8, 1))[..., 0]


@functools.lru_cache(maxsize=8)
def _compiled_warp(
    shape: tuple[int, int, int],
    output_size: tuple[int, int],
    families: tuple[str, ...],
    padding: str,
    fill_value: tuple[float, ...],
) -> Any:
    """`stn.warp` compiled for images of one shape, on whatever backend Keras runs."""
    import keras

    from stn import Composition, get_transform, warp

    family = get_transform(families[0]) if len(families) == 1 else Composition(families)

    class Warp(keras.layers.Layer):
        def call(self, images: Any, params: Any) -> Any:
            return warp(
                images,
                params,
                family,
                output_size=output_size,
                padding=padding,
                fill_value=fill_value if padding == "constant" else 0.0,
                data_format="channels_last",
            )

    inputs = keras.Input(shape, dtype="uint8"), keras.Input((family.size,), dtype="float32")
    model = keras.Model(inputs, Warp(dtype="float32")(*inputs))
    with warnings.catch_warnings():
        # Keras goes on without XLA where it must, as in deterministic TensorFlow.
        warnings.filterwarnings("ignore", "Model doesn't support `jit_compile")
        model.compile(jit_compile=keras.backend.backend() != "torch")

    def run(images: np.ndarray, params: np.ndarray) -> np.ndarray:
        # Every new batch size would be compiled anew: round up to a power of two.
        count = len(images)
        padded = 1 << math.ceil(math.log2(max(count, 1)))
        images = np.concatenate([images, np.zeros((padded - count, *shape), "uint8")])
        params = np.concatenate([params, np.zeros((padded - count, family.size), "float32")])
        return np.array(model.predict_on_batch([images, params])[:count])

    return run
