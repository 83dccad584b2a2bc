"""The spatial transformer as a Keras layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import layers, ops

from stn import samplers, transforms


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
        transform: The family of transformations, or its name; see `stn.TRANSFORMS`.
        localization: The network that sees the input: `"cnn"` (the default) or `"mlp"`, or any
            Keras layer or model whose output is `(batch, features)`; outputs with more axes are
            flattened. Do not end it with the parameters: the layer adds that head itself, a
            dense layer that starts at zero, on top of the identity.
        output_size: `(height, width)` of the output, or one number for both; that of the input
            by default.
        sampler: `"bilinear"` or `"nearest"`; see `stn.sample`.
        padding: `"zeros"`, `"border"`, `"reflection"` or `"constant"`; see `stn.sample`.
        fill_value: The value outside the image with `padding="constant"`.
        align_corners: Corner convention; see `stn.sample`.
        data_format: `"channels_last"`, `"channels_first"`, or None for the Keras setting.
        return_params: Whether to return the parameters and the sampling grid as well.
        identity_penalty: Factor of a loss the layer adds in training: the squared distance of the
            parameters from the identity, summed over the parameters, averaged over the batch. The
            task does not care which way up everything is straightened to, so without a small
            penalty (0.01) the output drifts to some common tilt.
        **kwargs: `name`, `dtype` and `trainable`, as in every Keras layer.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` channels first.
        Height and width must be known; the batch may be None.

    Output shape:
        `(batch, *output_size, channels)`, or channels first, in the compute type of the layer.
        With `return_params=True` a tuple of that, the parameters `(batch, transform.size)` and
        the grid `(batch, *output_size, 2)` of normalized points `(x, y)` in the input, both
        float32.

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
        output_size: int | Iterable[int] | None = None,
        sampler: str = "bilinear",
        padding: str = "zeros",
        fill_value: float = 0.0,
        align_corners: bool = False,
        data_format: str | None = None,
        return_params: bool = False,
        identity_penalty: float = 0.0,
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
        self.transform = transforms.get_transform(transform)
        self.output_size = transforms.check_output_size(output_size)
        self.sampler = sampler
        self.padding = padding
        self.fill_value = float(fill_value)
        self.align_corners = bool(align_corners)
        self.data_format = samplers.check_data_format(data_format)
        self.return_params = bool(return_params)
        if not identity_penalty >= 0:
            raise ValueError(
                "Expected identity_penalty to be at least 0. "
                f"Received: identity_penalty={identity_penalty!r}"
            )
        self.identity_penalty = float(identity_penalty)
        self._localization_name = localization if isinstance(localization, str) else None
        self.localization: Any = None if isinstance(localization, str) else localization
        # The parameters place pixels: they are computed in float32 whatever the policy.
        self.head = layers.Dense(
            self.transform.size, kernel_initializer="zeros", dtype="float32", name="head"
        )

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of this shape."""
        size = samplers.shape_size(input_shape, self.data_format)
        if self._localization_name is not None:
            self.localization = LOCALIZATIONS[self._localization_name](
                size, self.data_format, self.dtype_policy
            )
        try:
            if not self.localization.built:
                self.localization.build(input_shape)
            features = self.localization.compute_output_shape(input_shape)
        except ValueError as error:
            raise ValueError(
                "Expected images that suit the localization network "
                f"{self.localization.name!r}; it may need larger ones, or another number of "
                f"channels. Received: input_shape={tuple(input_shape)} ({error})"
            ) from error
        self.head.build((features[0], _product(features[1:])))
        self.built = True

    def localize(self, images: Any, training: bool | None = None) -> Any:
        """Predict the parameters `(batch, transform.size)` for a batch of images."""
        features = self.localization(images, training=training)
        features = ops.reshape(features, (-1, _product(features.shape[1:])))
        offset = self.head(features)
        if training and self.identity_penalty:
            self.add_loss(self.identity_penalty * ops.mean(ops.sum(ops.square(offset), axis=-1)))
        return offset + ops.convert_to_tensor(self.transform.identity, "float32")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Straighten a batch of images."""
        images = ops.cast(inputs, self.compute_dtype)
        size = samplers.image_size(images, self.data_format)
        params = self.localize(images, training=training)
        grid = transforms.sampling_points(
            params, self.transform, size, self.output_size or size, self.align_corners
        )
        outputs = transforms.sample_displaced(
            images,
            grid,
            sampler=self.sampler,
            padding=self.padding,
            fill_value=self.fill_value,
            align_corners=self.align_corners,
            data_format=self.data_format,
        )
        return (outputs, params, grid) if self.return_params else outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape or shapes of the output for inputs of this shape."""
        batch, size = input_shape[0], samplers.shape_size(input_shape, self.data_format)
        size = self.output_size or size
        if self.data_format == "channels_first":
            outputs = (batch, input_shape[1], *size)
        else:
            outputs = (batch, *size, input_shape[-1])
        if not self.return_params:
            return outputs
        return outputs, (batch, self.transform.size), (batch, *size, 2)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving.

        Raises:
            ValueError: If the transform is not one of `stn.TRANSFORMS`, which loading could not
                find again.
        """
        if transforms.TRANSFORMS.get(self.transform.name) is not self.transform:
            raise ValueError(
                f"Expected a transform out of {tuple(transforms.TRANSFORMS)} to save the layer. "
                f"Received: transform={self.transform!r}"
            )
        return {
            **super().get_config(),
            "transform": self.transform.name,
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
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpatialTransformer:
        """Create the layer from what `get_config` returned."""
        config = dict(config)
        if isinstance(config["localization"], dict):
            config["localization"] = keras.saving.deserialize_keras_object(config["localization"])
        return cls(**config)


def _cnn(size: tuple[int, int], data_format: str, dtype: Any) -> keras.Sequential:
    """Two 5x5 convolutions on a copy of at most 32 pixels; keeps where things are."""
    return keras.Sequential(
        [
            *_channels_last(data_format),
            *_reduce(size, 32, dtype),
            layers.Conv2D(20, 5, padding="same", activation="relu", dtype=dtype),
            layers.MaxPooling2D(padding="same", dtype=dtype),
            layers.Conv2D(20, 5, padding="same", activation="relu", dtype=dtype),
            layers.MaxPooling2D(padding="same", dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(50, activation="relu", dtype=dtype),
        ],
        name="cnn",
    )


def _mlp(size: tuple[int, int], data_format: str, dtype: Any) -> keras.Sequential:
    """Two dense layers on a copy of at most 32 pixels."""
    return keras.Sequential(
        [
            *_channels_last(data_format),
            *_reduce(size, 32, dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(64, activation="relu", dtype=dtype),
            layers.Dense(64, activation="relu", dtype=dtype),
        ],
        name="mlp",
    )


LOCALIZATIONS = {"cnn": _cnn, "mlp": _mlp}
"""The named localization networks: `(size, data_format, dtype) -> model`."""


def _channels_last(data_format: str) -> list[layers.Layer]:
    # TensorFlow has no channels-first convolution on the CPU.
    return [layers.Permute((2, 3, 1))] if data_format == "channels_first" else []


def _reduce(size: tuple[int, int], limit: int, dtype: Any) -> list[layers.Layer]:
    factor = -(-max(size) // limit)
    if factor == 1:
        return []
    return [layers.AveragePooling2D(factor, padding="same", dtype=dtype)]


def _product(shape: Iterable[int]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product
