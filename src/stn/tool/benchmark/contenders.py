"""Everybody who can warp a batch of images by affine parameters: we, and our peers.

A maker takes a case and gives its variants, ready to be called. All warp the same images by the
same transformation, each from parameters as it likes them: made outside of what is timed. What
they return is brought into one form, so that it can be compared before anything is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

import stn
from stn import grids
from stn.tool import environment
from stn.tool.benchmark import hardware

PASSES = ("forward", "theta", "both")
"""Forward; forward and backward to the parameters; forward and backward to them and the images."""


class UnavailableError(Exception):
    """A contender does not do this; the message says why."""


@dataclass(frozen=True)
class Case:
    """Images, the transformation of each, and the gradient that comes back from above.

    Attributes:
        images: Float32 `(batch, height, width, channels)`.
        params: Float32 `(batch, 6)`, affine parameters as `stn.warp` takes them.
        upstream: Float32, of the shape of `images`.
        way: One of `PASSES`.
    """

    images: np.ndarray
    params: np.ndarray
    upstream: np.ndarray
    way: str

    @classmethod
    def draw(cls, shape: tuple[int, ...], way: str) -> Case:
        """Noise, turned by up to 45 degrees, scaled and moved a little."""
        rng = np.random.default_rng(0)
        count = shape[0]
        angle, scale = rng.uniform(-np.pi / 4, np.pi / 4, count), rng.uniform(0.7, 1.2, count)
        a, b = scale * np.cos(angle), scale * np.sin(angle)
        x, y = rng.uniform(-0.2, 0.2, (2, count))
        params = np.stack([a, -b, x, b, a, y], axis=-1).astype("float32")
        images = rng.random(shape, "float32")
        return cls(images, params, rng.standard_normal(shape, "float32"), way)

    @property
    def moved(self) -> int:
        """The bytes that have to be read and written, even by the best.

        Forward reads the images and writes the result. Backward reads the gradient of the result
        and the images again, and writes the gradient of the images if it is wanted.
        """
        return {"forward": 2, "theta": 4, "both": 5}[self.way] * self.images.nbytes

    def pixel_matrices(self) -> np.ndarray:
        """The same transformation in pixels, from result to image: float64 `(batch, 3, 3)`."""
        from_points = to_pixels(self.images.shape[1:3])
        matrices = np.tile(np.eye(3), (len(self.params), 1, 1))
        matrices[:, :2] = self.params.reshape(-1, 2, 3)
        return from_points @ matrices @ np.linalg.inv(from_points)

    def pixel_gradients(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient of `pixel_matrices` where that of `params` is given: `(batch, 2, 3)`."""
        from_points = to_pixels(self.images.shape[1:3])
        whole = np.zeros((len(gradient), 3, 3))
        whole[:, :2] = gradient.reshape(-1, 2, 3)
        return (np.linalg.inv(from_points).T @ whole @ from_points.T)[:, :2]


def to_pixels(size: tuple[int, ...]) -> np.ndarray:
    """The matrix from normalized points to pixels of an image of `(height, width)`."""
    matrix = np.diag([*grids.extents(size, False), 1.0])
    matrix[:2, 2] = [(n - 1) / 2 for n in reversed(size)]
    return matrix


@dataclass(frozen=True)
class Contender:
    """One variant of one contender.

    Attributes:
        call: Does the work; returns when it is done.
        results: The same as arrays: the result, then the gradients of parameters and images as far
            as they are wanted.
        expect: What `results` should be, given ours.
        tolerance: Largest error of the result; 1e-3 for all that compute in float32.
        count: How many of its parameters have a gradient worth comparing; None for all.
        planned: Where the compiler says so, the bytes it takes on an accelerator.
    """

    call: Callable[[], Any]
    results: Callable[[], list[np.ndarray]]
    expect: Callable[[list[np.ndarray]], list[np.ndarray]] = field(default=list)
    tolerance: float = 1e-3
    count: int | None = None
    planned: Callable[[], int] | None = None


Variants = dict[str, Callable[[], Contender]]


def _warp(images: Any, params: Any) -> Any:
    return stn.warp(images, params, "affine", data_format="channels_last")


def ours(case: Case) -> Variants:
    """Our own, compiled in every way its backend has."""
    return _on_backend(_warp, case, case.params)


def _on_backend(
    warp: Callable[[Any, Any], Any], case: Case, params: np.ndarray, **options: Any
) -> Variants:
    """Variants of a function of images and parameters that is written for the backend of Keras."""
    backend = keras.backend.backend()
    if backend == "jax":
        return {"jit": functools.partial(_with_jax, warp, case, params, **options)}
    if backend == "torch":
        return {
            "eager": functools.partial(_with_torch, warp, case, params, False, **options),
            "torch.compile": functools.partial(_with_torch, warp, case, params, True, **options),
        }
    return {
        "XLA": functools.partial(_with_tensorflow, warp, case, params, True, **options),
        "tf.function": functools.partial(_with_tensorflow, warp, case, params, False, **options),
    }


def _with_jax(
    warp: Callable[[Any, Any], Any], case: Case, params: np.ndarray, **options: Any
) -> Contender:
    import jax

    def forward(images: Any, params: Any, upstream: Any) -> Any:
        return (warp(images, params),)

    def theta(images: Any, params: Any, upstream: Any) -> Any:
        result, back = jax.vjp(lambda params: warp(images, params), params)
        return result, *back(upstream)

    def both(images: Any, params: Any, upstream: Any) -> Any:
        result, back = jax.vjp(lambda params, images: warp(images, params), params, images)
        return result, *back(upstream)

    function = jax.jit({"forward": forward, "theta": theta, "both": both}[case.way])
    inputs = [jax.device_put(value) for value in (case.images, params, case.upstream)]

    def call() -> Any:
        return jax.block_until_ready(function(*inputs))

    def planned() -> int:
        memory: Any = function.lower(*inputs).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    return Contender(
        call, lambda: [np.asarray(value) for value in call()], planned=planned, **options
    )


def _with_tensorflow(
    warp: Callable[[Any, Any], Any],
    case: Case,
    params: np.ndarray,
    compiled: bool,
    **options: Any,
) -> Contender:
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it finds that every case is traced anew

    @tf.function(jit_compile=compiled, autograph=False)
    def function(images: Any, params: Any, upstream: Any) -> Any:
        if case.way == "forward":
            return (warp(images, params),)
        wanted = [params] if case.way == "theta" else [params, images]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(wanted)
            result = warp(images, params)
        return result, *tape.gradient(result, wanted, output_gradients=upstream)

    inputs = [tf.constant(value) for value in (case.images, params, case.upstream)]
    on_cpu = not environment.has_accelerator()

    def call() -> Any:
        results = function(*inputs)
        if not on_cpu:
            tf.test.experimental.sync_devices()
        return results

    def results() -> list[np.ndarray]:
        found = call()
        if any(value is None for value in found):
            raise UnavailableError("TensorFlow has no gradient with respect to its transform")
        return [value.numpy() for value in found]

    return Contender(call, results, **options)


def _with_torch(
    warp: Callable[[Any, Any], Any],
    case: Case,
    params: np.ndarray,
    compiled: bool,
    *,
    channels_first: bool = False,
    **options: Any,
) -> Contender:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(hardware.cores())

    def tensor(value: np.ndarray, *, image: bool) -> Any:
        if image and channels_first:
            value = np.ascontiguousarray(np.moveaxis(value, -1, 1))
        return torch.from_numpy(value).to(device)

    images, upstream = (tensor(value, image=True) for value in (case.images, case.upstream))
    params = tensor(params, image=False)
    wanted = {"forward": [], "theta": [params], "both": [params, images]}[case.way]
    for value in wanted:
        value.requires_grad_()
    function = torch.compile(warp, dynamic=False) if compiled else warp

    def call() -> Any:
        with torch.set_grad_enabled(bool(wanted)):
            result = function(images, params)
        found = result, *(torch.autograd.grad(result, wanted, upstream) if wanted else ())
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    def results() -> list[np.ndarray]:
        found = [value.detach().cpu().numpy() for value in call()]
        if channels_first:
            found = [np.moveaxis(v, 1, -1) if v.ndim == 4 else v for v in found]
        return found

    return Contender(call, results, **options)


# --- peers ---------------------------------------------------------------------------------------


def torch_native(case: Case) -> Variants:
    """PyTorch's own pair of functions, on images with the channels first, which it likes best."""
    from torch.nn.functional import affine_grid, grid_sample

    def warp(images: Any, params: Any) -> Any:
        grid = affine_grid(params.reshape(-1, 2, 3), images.shape, align_corners=False)
        return grid_sample(images, grid, align_corners=False)

    options = {"channels_first": True}
    return {
        "eager": functools.partial(_with_torch, warp, case, case.params, False, **options),
        "torch.compile": functools.partial(_with_torch, warp, case, case.params, True, **options),
    }


def kornia(case: Case) -> Variants:
    """Its `warp_affine`, from matrices in pixels, from image to result."""
    from kornia.geometry.transform import warp_affine  # pyright: ignore[reportMissingImports]

    size = case.images.shape[1:3]
    back = case.pixel_matrices()
    params = np.linalg.inv(back)[:, :2].astype("float32")

    def warp(images: Any, params: Any) -> Any:
        return warp_affine(images, params, size)

    def expect(truth: list[np.ndarray]) -> list[np.ndarray]:
        # Of the inverse B of A, the change is -B dA B.
        def convert(gradient: np.ndarray) -> np.ndarray:
            whole = np.zeros((len(gradient), 3, 3))
            whole[:, :2] = case.pixel_gradients(gradient)
            turned = back.transpose(0, 2, 1)
            return -(turned @ whole @ turned)[:, :2]

        return [truth[0], *map(convert, truth[1:2]), *truth[2:]]

    options = {"channels_first": True, "expect": expect}
    return {
        "eager": functools.partial(_with_torch, warp, case, params, False, **options),
        "torch.compile": functools.partial(_with_torch, warp, case, params, True, **options),
    }


def keras_native(case: Case) -> Variants:
    """`keras.ops.image.affine_transform` on the same backend as ours."""
    params = np.zeros((len(case.params), 8), "float32")
    params[:, :6] = case.pixel_matrices()[:, :2].reshape(-1, 6)

    def warp(images: Any, params: Any) -> Any:
        # On PyTorch it changes what it is given.
        return keras.ops.image.affine_transform(images, 1 * params, data_format="channels_last")

    def expect(truth: list[np.ndarray]) -> list[np.ndarray]:
        def convert(gradient: np.ndarray) -> np.ndarray:
            return case.pixel_gradients(gradient).reshape(-1, 6)

        return [truth[0], *map(convert, truth[1:2]), *truth[2:]]

    variants = _on_backend(warp, case, params, expect=expect, count=6)
    # It loops over the images of a batch there; what torch.compile makes of it takes minutes.
    variants.pop("torch.compile", None)
    return variants


def opencv(case: Case) -> Variants:
    """A loop over the images, each by `cv2.warpAffine`."""
    import cv2

    matrices = case.pixel_matrices()[:, :2]
    size = case.images.shape[2], case.images.shape[1]

    def call() -> Any:
        results = np.empty_like(case.images)
        for image, matrix, result in zip(case.images, matrices, results, strict=True):
            found = cv2.warpAffine(
                image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            result[:] = found.reshape(result.shape)
        return results

    # Some versions round to 1/32 of a pixel: on noise in [0, 1] that is up to so much.
    return {"loop": functools.partial(_forward_only, call, case, "OpenCV", tolerance=2 / 32)}


def scipy(case: Case) -> Variants:
    """A loop over images and channels, each by `scipy.ndimage.affine_transform`."""
    from scipy import ndimage

    matrices = case.pixel_matrices()
    flip = np.eye(3)[[1, 0, 2]]  # its coordinates are (row, column)
    matrices = flip @ matrices @ flip

    def call() -> Any:
        results = np.empty_like(case.images)
        for image, matrix, result in zip(case.images, matrices, results, strict=True):
            for channel in range(image.shape[-1]):
                ndimage.affine_transform(
                    image[..., channel],
                    matrix,
                    order=1,
                    mode="grid-constant",
                    output=result[..., channel],
                )
        return results

    return {"loop": functools.partial(_forward_only, call, case, "SciPy")}


def _forward_only(
    call: Callable[[], Any], case: Case, title: str, *, tolerance: float = 1e-3
) -> Contender:
    if case.way != "forward":
        raise UnavailableError(f"{title} has no gradients")
    return Contender(call, lambda: [call()], tolerance=tolerance)


MAKERS: dict[str, Callable[[Case], Variants]] = {
    "stn": ours,
    "torch": torch_native,
    "kornia": kornia,
    "keras": keras_native,
    "opencv": opencv,
    "scipy": scipy,
}
"""Everybody: from a case to variants."""
