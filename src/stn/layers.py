"""The spatial transformer as a Keras layer."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from stn import filters, samplers, transforms
from stn.localizations import LOCALIZATIONS, feature_shape


@keras.saving.register_keras_serializable(package="stn")
class SpatialTransformer(layers.Layer):
    """Learns to crop, scale, turn and straighten its own input (Jaderberg et al. 2015).

    A localization network looks at the input and predicts the parameters of a transformation; the
    input is then sampled on the transformed grid. Everything is differentiable, so the layer is
    trained with the rest of the model, by the loss of the task alone. Before training it returns
    its input exactly (resized, with another `output_size`).

    Use it at the input of a network, on feature maps, or several times in one model. Do not
    normalize the background of the images away from the fill value before this layer: what is
    read outside the image should look like background.

    Args:
        transform: The family of transformations, or its name; see `stn.TRANSFORMS`. On volumes,
            names are those of the three-dimensional families.
        localization: The network that sees the input: `"cnn"` (the default) or `"mlp"`, or any
            Keras layer or model whose output is `(batch, features)`; outputs with more axes are
            flattened. Do not end it with the parameters: the layer adds that head itself, a
            dense layer that starts at zero, on top of the identity. Each transformer needs one of
            its own: Keras cannot load a model in which two layers hold the same one. Several
            transformations of one image are `heads`.
        output_size: `(height, width)` of the output (for volumes `(depth, height, width)`), or
            one number for all; that of the input by default. With several heads, a list of one
            `(height, width)` for each gives each its own.
        sampler: See `stn.sample`.
        padding: See `stn.sample`.
        fill_value: The value outside the image, or one per channel, with `padding="constant"` or
            `"inward"`.
        align_corners: Corner convention; see `stn.sample`.
        data_format: `"channels_last"`, `"channels_first"`, or None for the Keras setting.
        return_params: Whether to return the parameters and the sampling grid as well.
        identity_penalty: Factor of a loss the layer adds in training: the squared distance of the
            parameters from the identity (from its tile, with `initialization="tiles"`), as the
            head asks for them before `bounds`, summed over the parameters, averaged over the
            batch. The task does not care which way up everything is straightened to, so without a
            small penalty (0.01) the output drifts to some common tilt.
        frame_penalty: Factor of a loss the layer adds in training: the squared distance of the
            sampling points from the image, 0 inside, averaged over points and batch, in
            normalized units. It calls back a layer that looks past its input, where nothing else
            would: outside, there is no gradient to follow.
        bounds: Limits in physical units that the parameters approach smoothly and never pass: a
            dictionary with some of the family's `limits`, for example `{"scale": (0.5, 2),
            "angle": 0.8, "shift": 0.25}`: a factor, radians, a fraction of the image. See
            `Transform.bound`.
        initialization: Where the heads look before training: all at the whole input
            (`"identity"`), or each at its own tile of it (`"tiles"`), in as many rows and columns
            as make the tiles most like the input. For families that compose in closed form and
            can shift; those that cannot zoom look at the whole, shifted. `bounds` limit how far
            a head goes from there.
        gradient_factor: Factor on the gradient that reaches the localization network. Under
            gradient descent it is a factor on its learning rate (the paper used 0.1 and less);
            Adam, which divides by the size of the gradient, takes it out again.
        gradient_clip: The longest gradient of the loss of an image with respect to its parameters;
            a longer one is shortened, one that is not of numbers becomes 0. For losses averaged
            over the batch, and not scaled as for float16. None: as it comes.
        heads: How many transformations of one input the localization network predicts, so that
            each can look at its own part.
        iterations: How often the localization network looks: from the second time on it sees what
            it has straightened so far, and its parameters are composed with the earlier ones; the
            input itself is sampled once, at the end (inverse compositional spatial transformers,
            Lin and Lucey 2017). For families that compose in closed form.
        localization_size: Height and width, or one number for both, of the shrunk copy that the
            localization network sees; sampling is from the full input. Without it the network
            sees the input itself, and the named ones shrink that themselves.
        **kwargs: `name`, `dtype` and `trainable`, as in every Keras layer.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, depth, height, width, channels)` for
        volumes; channels first, the channels follow the batch. All but the batch must be known.

    Output shape:
        `(batch, *output_size, channels)`, or channels first, in the compute type of the layer.
        With `return_params=True` a tuple of that, the parameters `(batch, transform.size)` and
        the grid `(batch, *output_size, 2)` of normalized points `(x, y)` in the input, or
        `(batch, *output_size, 3)` of `(x, y, z)`, both float32. With several heads, a list with one
        of these for each head.

    Raises:
        ValueError: On an unknown option, or an input that does not fit.

    Example:
        >>> import keras, stn
        >>> images = keras.Input((28, 28, 1))
        >>> straight = stn.SpatialTransformer("affine", name="stn")(images)
        >>> logits = keras.layers.Dense(10)(keras.layers.Flatten()(straight))
        >>> model = keras.Model(images, logits)
    """

    def __init__(
        self,
        transform: str | transforms.Transform = "affine",
        *,
        localization: str | layers.Layer | None = None,
        output_size: Any = None,
        sampler: str = "bilinear",
        padding: str = "zeros",
        fill_value: float | Iterable[float] = 0.0,
        align_corners: bool = False,
        data_format: str | None = None,
        return_params: bool = False,
        identity_penalty: float = 0.0,
        frame_penalty: float = 0.0,
        initialization: str = "identity",
        gradient_factor: float = 1.0,
        gradient_clip: float | None = None,
        bounds: Mapping[str, Any] | None = None,
        heads: int = 1,
        iterations: int = 1,
        localization_size: int | Iterable[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        samplers.check_options(sampler, padding, fill_value)
        localization = "cnn" if localization is None else localization
        known = isinstance(localization, str) and localization in LOCALIZATIONS
        if not known and not isinstance(localization, layers.Layer):
            raise ValueError(
                f"Expected localization to be one of {tuple(LOCALIZATIONS)}, or a Keras layer or "
                f"model. Received: localization={localization!r}"
            )
        for name, count in (("heads", heads), ("iterations", iterations)):
            if not (isinstance(count, Integral) and count >= 1):
                raise ValueError(f"Expected {name} to be at least 1. Received: {name}={count!r}")
        for name, value in (
            ("identity_penalty", identity_penalty),
            ("frame_penalty", frame_penalty),
            ("gradient_factor", gradient_factor),
        ):
            if not (isinstance(value, Real) and 0 <= value < float("inf")):
                raise ValueError(
                    f"Expected {name} to be a number, at least 0. Received: {name}={value!r}"
                )
        if gradient_clip is not None and not (
            isinstance(gradient_clip, Real) and gradient_clip > 0
        ):
            raise ValueError(
                "Expected gradient_clip to be a number above 0, or None. "
                f"Received: gradient_clip={gradient_clip!r}"
            )
        if initialization not in ("identity", "tiles"):
            raise ValueError(
                "Expected initialization to be 'identity' or 'tiles'. "
                f"Received: initialization={initialization!r}"
            )
        # By name, the family is that of images until the layer is built on volumes.
        self._transform_name = transform if isinstance(transform, str) else None
        dimensions = transform.dimensions if isinstance(transform, transforms.Transform) else 2
        self.transform = transforms.get_transform(transform, dimensions=dimensions)
        if iterations > 1 and not self.transform.composable:
            raise ValueError(
                "Expected a transform that composes in closed form, with iterations above 1. "
                f"Received: transform={self.transform!r}, iterations={iterations}"
            )
        if initialization == "tiles" and not (
            self.transform.composable and "shift" in self.transform.limits
        ):
            raise ValueError(
                "Expected a transform that shifts and composes in closed form, with tiles. "
                f"Received: transform={self.transform!r}, initialization={initialization!r}"
            )
        self.bounds = self.transform.check_bounds(bounds)
        self.sampler = sampler
        self.padding = padding
        fill = samplers.fill_values(fill_value)
        self.fill_value = list(fill) if isinstance(fill_value, Iterable) else fill[0]
        self.align_corners = bool(align_corners)
        self.data_format = samplers.check_data_format(data_format)
        self.return_params = bool(return_params)
        self.identity_penalty = float(identity_penalty)
        self.frame_penalty = float(frame_penalty)
        self.initialization = initialization
        self.gradient_factor = float(gradient_factor)
        self.gradient_clip = None if gradient_clip is None else float(gradient_clip)
        self.heads = int(heads)
        self.iterations = int(iterations)
        self.output_size = _sizes(output_size, self.heads)
        self.localization_size = transforms.freeze_size(localization_size, "localization_size")
        self._localization_name = localization if isinstance(localization, str) else None
        self.localization: Any = None if isinstance(localization, str) else localization

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of this shape."""
        size = samplers.shape_size(input_shape, self.data_format)
        if self._transform_name:
            self.transform = transforms.get_transform(self._transform_name, dimensions=len(size))
            self.bounds = self.transform.check_bounds(self.bounds)
        else:
            transforms.get_transform(self.transform, dimensions=len(size))
        self._output_sizes(size)
        seen = self._seen_size(size)
        first = self.data_format == "channels_first"
        seen_shape = (
            (*input_shape[:2], *seen) if first else (input_shape[0], *seen, input_shape[-1])
        )
        if self._localization_name is not None:
            self.localization = LOCALIZATIONS[self._localization_name](
                seen, self.data_format, self.dtype_policy
            )
        if self.gradient_clip is not None and self.compute_dtype == "float16":
            warnings.warn(
                "gradient_clip measures the gradient as it comes. In float16 Keras scales the loss "
                "(LossScaleOptimizer), 32,768 times at first, and so much too short it is clipped; "
                "prefer mixed_bfloat16, or clip in the optimizer.",
                stacklevel=2,
            )
        try:
            features = feature_shape(self.localization, seen_shape, self.compute_dtype)
        except ValueError as error:
            raise ValueError(
                "Expected images that suit the localization network "
                f"{self.localization.name!r}; it may need larger ones, or another number of "
                f"channels. Received: input_shape={tuple(input_shape)} ({error})"
            ) from error
        # The parameters place pixels: they are computed in float32 whatever the policy.
        self.head = layers.Dense(
            self.heads * self.transform.size,
            kernel_initializer="zeros",
            dtype="float32",
            name="head",
        )
        self.head.build((features[0], math.prod(features[1:])))
        if not self.trainable:  # nor are the weights that exist only now
            for part in (self.localization, self.head):
                part.trainable = True  # TensorFlow takes no note of what is False already
                part.trainable = False
        self.built = True

    def localize(self, images: Any, training: bool | None = None) -> Any:
        """Predict the parameters `(batch, transform.size)` for a batch of images.

        With several heads, a list of these.
        """
        size = samplers.image_size(images, self.data_format)
        seen = self._seen_size(size)
        found = self._predict(self._view(images, size), size, training)
        if self.initialization == "tiles":
            found = [
                self.transform.compose(tile, params, size=size, align_corners=self.align_corners)
                for tile, params in zip(self._tiles(size), found, strict=True)
            ]
        for _ in range(1, self.iterations):
            for i, params in enumerate(found):
                grid = self._grid(params, size, seen)
                view = self._read(images, grid, "antialiased" if seen != size else self.sampler)
                change = self._predict(view, size, training)[i]
                found[i] = self.transform.compose(
                    params, change, size=size, align_corners=self.align_corners
                )
        return found if self.heads > 1 else found[0]

    def saturation(self, images: Any) -> Any:
        """How much of what the localization network asks for the `bounds` take away.

        Args:
            images: A batch, as the layer takes it.

        Returns:
            `(batch, heads)` float32 from 0, nothing, to 1: one minus the change of the parameters
            that a bound allows, over what it would be without that bound; of several bounds, the
            one that takes away most. At 0.5 the gradient is down to a seventh. At the first look,
            with `iterations`.
        """
        images = ops.cast(images, self.compute_dtype)
        size = samplers.image_size(images, self.data_format)
        offsets = self._offsets(self._view(images, size), False)
        shares = [0.0 * ops.stack([free[:, 0] for free in offsets], axis=1)]
        for key, bound in (self.bounds or {}).items():
            center = float(key == "scale")
            none, own, far = (
                ops.stack(self._bound(offsets, size, {key: limits}), axis=1)
                for limits in (
                    (center - 1e-6, center + 1e-6),
                    bound,
                    (center * 1e-6 or -1e6, 1e6),
                )
            )
            given, asked = (
                ops.sqrt(ops.sum(ops.square(change - none), axis=-1)) for change in (own, far)
            )
            # A turn may be asked for that goes all around and ends up less far.
            shares.append(ops.minimum(ops.abs(1 - (given + 1e-6) / (asked + 1e-6)), 1.0))
        return functools.reduce(ops.maximum, shares)

    def _view(self, images: Any, size: tuple[int, ...]) -> Any:
        """What the localization network sees of the input."""
        seen = self._seen_size(size)
        if seen == size:
            return images
        last = samplers.to_channels_last(images, self.data_format)
        view = filters.resize(samplers.float_tensor(last), seen)
        return ops.cast(samplers.from_channels_last(view, self.data_format), images.dtype)

    def _offsets(self, view: Any, training: bool | None) -> list[Any]:
        """What the head says for each transformation, before bounds: zeros at the identity."""
        features = self.localization(view, training=training)
        features = ops.reshape(features, (-1, math.prod(features.shape[1:])))
        with filters.exactly(features):
            offsets = self.head(features)
        if training and (self.gradient_factor != 1 or self.gradient_clip is not None):
            offsets = _temper(offsets, self.heads, self.gradient_factor, self.gradient_clip)
        if training and self.identity_penalty:
            self.add_loss(self.identity_penalty * ops.mean(ops.sum(ops.square(offsets), axis=-1)))
        n = self.transform.size
        return [offsets[:, i * n : (i + 1) * n] for i in range(self.heads)]

    def _predict(self, view: Any, size: tuple[int, ...], training: bool | None) -> list[Any]:
        """The parameters of each head for what the localization network sees."""
        return self._bound(self._offsets(view, training), size, self.bounds)

    def _bound(self, offsets: list[Any], size: tuple[int, ...], bounds: Any) -> list[Any]:
        """The parameters within bounds for what the head says."""
        return [
            self.transform.bound(free, bounds, size=size, align_corners=self.align_corners)
            for free in offsets
        ]

    def _tiles(self, size: tuple[int, ...]) -> list[Any]:
        """The parameters `(1, transform.size)` with which each head looks at its own tile."""
        family = self.transform
        return [
            ops.convert_to_tensor([_zoom(family, factors, shifts)], "float32")
            for factors, shifts in _tiling(self.heads, size)
        ]

    def _grid(self, params: Any, size: tuple[int, ...], output_size: tuple[int, ...]) -> list[Any]:
        return transforms.sampling_points(
            params, self.transform, size, output_size, self.align_corners
        )

    def _read(self, images: Any, grid: list[Any], sampler: str) -> Any:
        return transforms.sample_displaced(
            images,
            grid,
            aligned=self.transform.aligned,
            sampler=sampler,
            padding=self.padding,
            fill_value=self.fill_value,
            align_corners=self.align_corners,
            data_format=self.data_format,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Straighten a batch of images."""
        images = ops.cast(inputs, self.compute_dtype)
        size = samplers.image_size(images, self.data_format)
        found = self.localize(images, training=training)
        results = []
        for params, output_size in zip(
            found if self.heads > 1 else [found], self._output_sizes(size), strict=True
        ):
            grid = self._grid(params, size, output_size)
            if training and self.frame_penalty:
                past = [ops.square(ops.relu(ops.abs(coordinate) - 1)) for coordinate in grid]
                self.add_loss(self.frame_penalty * ops.mean(sum(past)))
            outputs = self._read(images, grid, self.sampler)
            results.append(
                (outputs, params, ops.stack(grid, axis=-1)) if self.return_params else outputs
            )
        return results if self.heads > 1 else results[0]

    def _output_sizes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The output size of each head, for inputs of a size."""
        sizes = self.output_size if isinstance(self.output_size, list) else [self.output_size]
        sizes = [transforms.check_output_size(n, len(size)) or size for n in sizes]
        return sizes if len(sizes) == self.heads else sizes * self.heads

    def _seen_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size of what the localization network sees, for inputs of a size."""
        return transforms.check_output_size(self.localization_size, len(size)) or size

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """The shapes and types of the output: parameters and grid are float32 in any policy."""
        types = (self.compute_dtype, "float32", "float32")

        def describe(shape: Any) -> Any:
            if not self.return_params:
                return keras.KerasTensor(shape, self.compute_dtype)
            return tuple(keras.KerasTensor(*one) for one in zip(shape, types, strict=True))

        shapes = self.compute_output_shape(inputs.shape)
        return [describe(one) for one in shapes] if self.heads > 1 else describe(shapes)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape or shapes of the output for inputs of this shape."""
        batch, size = input_shape[0], samplers.shape_size(input_shape, self.data_format)
        family = transforms.get_transform(
            self._transform_name or self.transform, dimensions=len(size)
        )
        results = []
        for output_size in self._output_sizes(size):
            if self.data_format == "channels_first":
                shape = (batch, input_shape[1], *output_size)
            else:
                shape = (batch, *output_size, input_shape[-1])
            extra = (batch, family.size), (batch, *output_size, len(size))
            results.append((shape, *extra) if self.return_params else shape)
        return results if self.heads > 1 else results[0]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving.

        Raises:
            ValueError: If the transform cannot be saved: one that is neither in the table nor has
                a `get_config`.
        """
        return {
            **super().get_config(),
            "transform": self._transform_name or transforms.serialize(self.transform),
            "localization": self._localization_name
            or keras.saving.serialize_keras_object(self.localization),
            "output_size": self.output_size,
            "sampler": self.sampler,
            "padding": self.padding,
            "fill_value": self.fill_value,
            "align_corners": self.align_corners,
            "data_format": self.data_format,
            "return_params": self.return_params,
            "identity_penalty": self.identity_penalty,
            "frame_penalty": self.frame_penalty,
            "initialization": self.initialization,
            "gradient_factor": self.gradient_factor,
            "gradient_clip": self.gradient_clip,
            "bounds": self.bounds,
            "heads": self.heads,
            "iterations": self.iterations,
            "localization_size": self.localization_size,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpatialTransformer:
        """Create the layer from what `get_config` returned."""
        config = dict(config)
        config["transform"] = transforms.deserialize(config["transform"])
        if isinstance(config["localization"], dict):
            config["localization"] = keras.saving.deserialize_keras_object(config["localization"])
        return cls(**config)


def _temper(offsets: Any, heads: int, factor: float, longest: float | None) -> Any:
    """The same numbers `(batch, heads * size)`, with gradients scaled and shortened."""

    @ops.custom_gradient
    def same(offsets: Any) -> tuple[Any, Any]:
        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            gradients = arguments[0] if upstream is None else upstream
            if longest is not None:
                rows = ops.reshape(gradients, (-1, heads, gradients.shape[-1] // heads))
                finite = ops.all(ops.isfinite(rows), axis=-1, keepdims=True)
                rows = ops.where(finite, rows, 0.0)
                # The loss is a mean: what one image has in it is the gradient times the batch.
                count = ops.cast(ops.shape(rows)[0], rows.dtype)
                peak = ops.max(ops.abs(rows), axis=-1, keepdims=True)  # squares would overflow
                unit = rows / ops.where(peak > 0, peak, 1.0)
                length = peak * ops.sqrt(ops.sum(ops.square(unit), axis=-1, keepdims=True))
                allowed = longest / count
                rows = ops.where(length > allowed, rows * (allowed / length), rows)
                gradients = ops.reshape(rows, (-1, gradients.shape[-1]))
            return factor * gradients

        return offsets + 0.0, gradient

    return same(offsets)


def _tiling(count: int, size: tuple[int, ...]) -> list[tuple[list[float], list[float]]]:
    """Divide an image into so many tiles: the `(x, y[, z])` factors and centers of each."""
    # Of all ways to write the count as a product, that with the least stretched tiles.
    ways = [
        way
        for way in itertools.product(range(1, count + 1), repeat=len(size))
        if math.prod(way) == count
    ]

    def stretch(way: tuple[int, ...]) -> float:
        sides = [length / n for length, n in zip(size, way, strict=True)]
        return max(sides) / min(sides)

    way = min(ways, key=stretch)
    tiles = []
    for place in itertools.product(*map(range, way)):
        centers = [(2 * i + 1) / n - 1 for i, n in zip(place, way, strict=True)]
        tiles.append(([1 / n for n in reversed(way)], centers[::-1]))
    return tiles


def _zoom(family: transforms.Transform, factors: list[float], shifts: list[float]) -> list[float]:
    """The parameters of a family that look at one tile, or at the square in it."""
    axes = "xyz"[: family.dimensions]
    values = dict(zip(axes, shifts, strict=True)) | {"scale": min(factors)}
    values |= {f"scale_{axis}": factor for axis, factor in zip(axes, factors, strict=True)}
    if family.name not in ("affine", "projective"):
        pairs = zip(family.parameters, family.identity, strict=True)
        return [values.get(parameter, identity) for parameter, identity in pairs]
    rows = np.concatenate([np.diag(factors), np.array(shifts)[:, None]], axis=1).ravel().tolist()
    return rows + list(family.identity[len(rows) :])


def _sizes(output_size: Any, heads: int) -> Any:
    """An output size, or a list with one for each head, frozen; errors as early as they can be."""
    several = isinstance(output_size, list | tuple) and any(
        isinstance(n, Iterable) or n is None for n in output_size
    )
    if not several:
        return transforms.freeze_size(output_size)
    if len(output_size) != heads:
        raise ValueError(
            f"Expected output_size to be one size, or a list of {heads}, one for each head. "
            f"Received: output_size={output_size!r}"
        )
    return [transforms.freeze_size(n) for n in output_size]
