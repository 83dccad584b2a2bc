"""Classifiers with a spatial transformer in front."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from stn import transforms
from stn.layers import SpatialTransformer

TRANSFORMER = "stn"
"""The name of the transformer layer in every classifier; see `looks` for what it gives."""

CHANNELS_LAST: dict[str, Any] = {"data_format": "channels_last"}
"""What layers of images are told, whatever Keras is set to."""


def classifier(
    architecture: str = "compact",
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 62,
    transform: Any = "affine",
    output_size: int | Iterable[int] | None = None,
    pooling: int = 1,
    standardize: bool = False,
    parameters: int | None = None,
    heads: int = 1,
    **options: Any,
) -> keras.Model:
    """Build an image classifier that straightens its input first. It is not compiled.

    The model takes images in [0, 255] (uint8 as they come from a file will do), scales them to
    [0, 1] itself, and returns probabilities. The transformer is the layer named `"stn"`, whose
    output is `(images, params, grid)`.

    Args:
        architecture: `"compact"`, the best accuracy for its speed; `"large"`, more accurate, at a
            third of the speed; `"reference"`, the network of the tutorials, three 3x3
            convolutions (64, 128, 256) in the localization network and again in the classifier;
            `"template"`, one template for each class behind the transformer, which has to align
            the images by itself: less accurate, but it congeals; `"cnn"` and `"fcn"`,
            convolutional and fully connected, localization network and classifier alike, to
            compare at equal `parameters` as Jaderberg et al. (2015) do; or `"adder"`, for pairs of
            digits in two channels: it reads each with the same network, and adds.
        input_shape: `(height, width, channels)` of the images.
        num_classes: The number of classes, at least 2.
        transform: A family of transformations or its name (`stn.TRANSFORMS`); `"none"` leaves the
            transformer out: the control to compare with.
        output_size: `(height, width)` of what the transformer passes on; that of the images by
            default. Without a transformer it has no meaning and is ignored.
        pooling: How many times finer the transformer samples, along both axes, than what it passes
            on, which is the average (Jaderberg et al. 2015 do so where images are shrunk). At the
            identity 1 returns the images themselves, 2 softens them a little.
        standardize: Whether localization network and body bring what they see to mean 0 and
            variance 1 first, each image by itself: for photographs, which are darker or paler for
            reasons of their own. What the transformer passes on keeps its brightness.
        parameters: About how many parameters the whole model may have: the classifier is made as
            wide as that allows. None: as wide as it usually is.
        heads: How many transformations of one image there are; the classifier sees what each of
            them gives, as so many more channels.
        **options: Further keywords of `stn.SpatialTransformer`: `sampler`, `padding`, `bounds` and
            so on. `identity_penalty` is that of the architecture unless it is among them. Without
            a transformer they are ignored, so that the control is the same call.

    Returns:
        A functional `keras.Model` from `(batch, *input_shape)` to `(batch, num_classes)`.

    Raises:
        ValueError: If the architecture is unknown, the images are too small for it, or it cannot
            be made with so few parameters.

    Example:
        >>> classifier("reference", num_classes=62).count_params()
        945476
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"Expected architecture to be one of {tuple(ARCHITECTURES)}. "
            f"Received: architecture={architecture!r}"
        )
    if num_classes < 2:
        raise ValueError(f"Expected at least 2 classes. Received: num_classes={num_classes}")
    if len(input_shape) != 3 or not all(n and n >= 1 for n in input_shape):
        raise ValueError(
            "Expected input_shape to be (height, width, channels), at least 1 each. "
            f"Received: input_shape={input_shape}"
        )
    if not (isinstance(pooling, int) and pooling >= 1):
        raise ValueError(f"Expected pooling to be at least 1. Received: pooling={pooling!r}")
    if architecture == "adder" and (input_shape[-1] != 2 or num_classes % 2 == 0):
        raise ValueError(
            "Expected pairs of grey images and an odd number of sums, for the 'adder' "
            f"architecture. Received: input_shape={tuple(input_shape)}, num_classes={num_classes}"
        )
    if decided := options.keys() & {"localization", "data_format", "return_params", "name"}:
        raise ValueError(
            "Expected keywords of SpatialTransformer that an architecture does not decide. "
            f"Received: {', '.join(sorted(decided))}"
        )
    *networks, usual_penalty = ARCHITECTURES[architecture]
    localization, body = (_standardized(n) if standardize else n for n in networks)
    identity_penalty = options.get("identity_penalty")
    identity_penalty = usual_penalty if identity_penalty is None else identity_penalty

    images = keras.Input(input_shape, name="images")
    x = layers.Rescaling(1 / 255, name="rescale")(images)
    transformer = None
    if transform != "none":
        size = transforms.check_output_size(output_size, 2) or tuple(input_shape[:2])
        transformer = SpatialTransformer(
            transform,
            localization=localization(),
            output_size=tuple(pooling * n for n in size) if pooling > 1 else output_size,
            data_format="channels_last",
            return_params=True,
            heads=heads,
            name=TRANSFORMER,
            **{**options, "identity_penalty": identity_penalty},
        )
    try:
        if transformer is not None:
            seen = transformer(x)
            if heads == 1:
                x, _, _ = seen
            else:
                x = layers.Concatenate(name="heads")([straight for straight, _, _ in seen])
            if pooling > 1:
                x = layers.AveragePooling2D(pooling, name="pooling", **CHANNELS_LAST)(x)
        width = 1.0
        if parameters is not None:
            others = transformer.count_params() if transformer is not None else 0
            width = _width(body, x.shape[1:], num_classes, parameters - others)
        x = body(width)(x)
    except ValueError as error:
        enough, received = "", ""
        if parameters is not None:
            enough = ", and parameters enough for its classifier"
            received = f", parameters={parameters}"
        raise ValueError(
            f"Expected images large enough for the {architecture!r} architecture{enough}. "
            f"Received: input_shape={tuple(input_shape)}, output_size={output_size}{received} "
            f"({error})"
        ) from error
    # Probabilities in float32 whatever the precision of the rest.
    if architecture == "adder":
        classes = Sum((num_classes + 1) // 2, dtype="float32", name="classes")
    else:
        classes = layers.Dense(num_classes, activation="softmax", dtype="float32", name="classes")
    family = transform if isinstance(transform, str) else transform.name
    return keras.Model(images, classes(x), name=f"{architecture}_{family}")


def _width(body: Any, shape: Any, num_classes: int, parameters: int) -> float:
    """The factor on the width of a body that brings its parameters, with the classes', closest."""
    # Weights between layers grow with the square of the width, all others in proportion.
    widths = (0.5, 1.0, 2.0)
    counts = []
    for width in widths:
        head = layers.Dense(num_classes)
        counts.append(keras.Sequential([keras.Input(shape), body(width), head]).count_params())
    square, line, rest = np.polyfit(widths, counts, 2)
    if counts[0] == counts[-1] or parameters <= rest + line / 32:
        raise ValueError(
            f"so few parameters leave {parameters} for the classifier, and its width "
            f"{'can only be as it is' if counts[0] == counts[-1] else 'would vanish'}"
        )
    # This way of writing the root holds where nothing grows with the square, too.
    return float(
        2 * (parameters - rest) / (line + (line**2 + 4 * square * (parameters - rest)) ** 0.5)
    )


def looks(model: keras.Model) -> list[tuple[Any, Any, Any]]:
    """What each head of the transformer in a classifier gives: `(images, params, grid)`.

    Example:
        >>> len(looks(classifier(heads=2)))
        2
    """
    flat = model.get_layer(TRANSFORMER).output
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def _standardized(network: Callable[..., keras.Sequential]) -> Callable[..., keras.Sequential]:
    def build(*arguments: Any) -> keras.Sequential:
        behind = network(*arguments)
        # One group is all of the image; an epsilon below the variance of one in the dark.
        first = layers.GroupNormalization(1, epsilon=1e-4, center=False, scale=False)
        return keras.Sequential([first, behind], name=behind.name)

    return build


def _reference_features(name: str, width: float = 1.0) -> list[layers.Layer]:
    stack: list[layers.Layer] = []
    for filters in (64, 128, 256):
        stack += [
            layers.Conv2D(
                _units(filters, width),
                3,
                activation="relu",
                kernel_initializer="he_normal",
                **CHANNELS_LAST,
            ),
            layers.MaxPooling2D(2, **CHANNELS_LAST),
        ]
    return [
        *stack,
        layers.GlobalAveragePooling2D(**CHANNELS_LAST),
        layers.Dense(_units(256, width), activation="relu"),
        layers.Dense(_units(128, width), activation="relu"),
    ]


def _reference_localization() -> keras.Sequential:
    return keras.Sequential(_reference_features("localization"), name="localization")


def _reference_body(width: float) -> keras.Sequential:
    stack = _reference_features("body", width)
    return keras.Sequential([*stack, layers.Dropout(0.5)], name="body")


def _compact_localization() -> keras.Sequential:
    return keras.Sequential(
        [
            # Where a character is and how it stands can be seen at half the resolution.
            layers.AveragePooling2D(2, padding="same", **CHANNELS_LAST),
            # Normalized, or at a learning rate that suits the classifier all units may die in the
            # first epoch, and every image gets the same transformation (docs/experiments.md).
            *_convolution(20, 5, 1),
            layers.MaxPooling2D(2, padding="same", **CHANNELS_LAST),
            *_convolution(20, 5, 1),
            layers.MaxPooling2D(2, padding="same", **CHANNELS_LAST),
            layers.Flatten(**CHANNELS_LAST),
            layers.Dense(64, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.Activation("relu"),
            # Adam moves every weight of the head by the learning rate whatever the gradient. With
            # 64 features of unit size the parameters would jump, and the image leave the frame.
            layers.Rescaling(0.3),
        ],
        name="localization",
    )


def _compact_body(width: float) -> keras.Sequential:
    return keras.Sequential(
        [
            *_convolution(_units(32, width), 5, 2),
            *_convolution(_units(64, width), 3, 2),
            *_convolution(_units(128, width), 3, 1),
            layers.MaxPooling2D(2, padding="same", **CHANNELS_LAST),
            layers.Flatten(**CHANNELS_LAST),
            layers.Dropout(0.2),
            layers.Dense(_units(256, width), activation="relu"),
            layers.Dropout(0.3),
        ],
        name="body",
    )


def _large_body(width: float) -> keras.Sequential:
    return keras.Sequential(
        [
            *_convolution(_units(48, width), 5, 2),
            *_convolution(_units(64, width), 3, 1),
            *_convolution(_units(128, width), 3, 2),
            *_convolution(_units(128, width), 3, 1),
            *_convolution(_units(256, width), 3, 2),
            layers.Flatten(**CHANNELS_LAST),
            layers.Dropout(0.4),
            layers.Dense(_units(256, width), activation="relu"),
            layers.Dropout(0.4),
        ],
        name="body",
    )


def _cnn_body(width: float) -> keras.Sequential:
    # Numbers of channels that fill the registers of a processor: others are up to twice as slow.
    # What parameters are left, the last convolution takes.
    return keras.Sequential(
        [
            *_convolution(32, 5, 2),
            *_convolution(64, 3, 2),
            *_convolution(64, 3, 1),
            PoolTo(4),
            *_convolution(128, 3, 1),
            *_convolution(_units(128, width), 3, 1),
            layers.Flatten(**CHANNELS_LAST),
            layers.Dropout(0.1),
        ],
        name="body",
    )


def _fcn_localization() -> keras.Sequential:
    return keras.Sequential(
        [
            layers.AveragePooling2D(2, padding="same", **CHANNELS_LAST),
            layers.Flatten(**CHANNELS_LAST),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Rescaling(0.3),  # see the compact one
        ],
        name="localization",
    )


def _fcn_body(width: float) -> keras.Sequential:
    stack: list[layers.Layer] = [layers.Flatten(**CHANNELS_LAST)]
    for units in (256, 256, 128):
        stack += [
            layers.Dense(_units(units, width), use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.Activation("relu"),
            layers.Dropout(0.1),
        ]
    return keras.Sequential(stack, name="body")


def _template_body(width: float) -> keras.Sequential:
    # A template for each class, and nothing that could make up for what is not aligned: only the
    # transformer can.
    return keras.Sequential([layers.Flatten(**CHANNELS_LAST)], name="body")


def _units(usual: int, width: float) -> int:
    return max(1, round(width * usual))


def _convolution(filters: int, size: int, strides: int) -> list[layers.Layer]:
    return [
        layers.Conv2D(filters, size, strides, padding="same", use_bias=False, **CHANNELS_LAST),
        layers.BatchNormalization(momentum=0.9),
        layers.Activation("relu"),
    ]


@keras.saving.register_keras_serializable(package="stn")
class PoolTo(layers.Layer):
    """Halves images by the maximum of 2x2 pixels until no side is longer than `size`.

    Args:
        size: The longest side that may be left.
        **kwargs: As in every Keras layer.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, smaller height, smaller width, channels)`; odd sides are rounded up.
    """

    def __init__(self, size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs: Any) -> Any:
        """The pooled images."""
        while max(inputs.shape[1:3]) > self.size:
            # The second 2 are the strides: left out, Keras 3.15 fails on JAX.
            inputs = ops.max_pool(inputs, 2, 2, padding="same", data_format="channels_last")
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(package="stn")
class Apart(layers.Layer):
    """Applies one network to each channel as if it were an image of its own.

    Args:
        network: From `(batch, height, width, 1)` to `(batch, features)`.
        **kwargs: As in every Keras layer.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, channels, features)`.
    """

    def __init__(self, network: keras.Sequential, **kwargs: Any):
        super().__init__(**kwargs)
        self.network = network

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of this shape."""
        self.network.build((None, *input_shape[1:3], 1))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The features of each channel."""
        height, width, channels = inputs.shape[1:]
        images = ops.reshape(ops.transpose(inputs, (0, 3, 1, 2)), (-1, height, width, 1))
        features = self.network(images, training=training)
        return ops.reshape(features, (-1, channels, features.shape[-1]))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        network = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": network}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Apart:
        """Create the layer from what `get_config` returned."""
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(**{**config, "network": network})


@keras.saving.register_keras_serializable(package="stn")
class Sum(layers.Layer):
    """Reads two digits from their features, and gives the probabilities of their sum.

    One dense layer reads both. Where several heads look at a digit, what they say is added up. The
    sum of two digits that are drawn by themselves has the convolution of their distributions.

    Args:
        digits: How many there are.
        **kwargs: As in every Keras layer.

    Input shape:
        `(batch, heads * 2, features)`: of the first and the second digit, as each head sees them.

    Output shape:
        `(batch, 2 * digits - 1)`.
    """

    def __init__(self, digits: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.digits = digits
        self.read = layers.Dense(digits, dtype=self.dtype_policy, name="read")

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of this shape."""
        self.read.build(input_shape)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The probabilities of the sums."""
        n = self.digits
        logits = ops.reshape(self.read(inputs), (-1, inputs.shape[1] // 2, 2, n))
        digits = ops.softmax(ops.sum(logits, axis=1), axis=-1)
        pairs = digits[:, 0, :, None] * digits[:, 1, None, :]
        # Rows of n numbers, each beginning one place further to the right than the one above.
        slanted = ops.reshape(ops.pad(pairs, ((0, 0), (0, 0), (0, n))), (-1, 2 * n * n))
        return ops.sum(ops.reshape(slanted[:, : n * (2 * n - 1)], (-1, n, 2 * n - 1)), axis=1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {**super().get_config(), "digits": self.digits}


def _adder_body(width: float) -> Apart:
    network = keras.Sequential(
        [
            *_convolution(_units(32, width), 5, 2),
            *_convolution(_units(64, width), 3, 2),
            *_convolution(_units(64, width), 3, 1),
            layers.MaxPooling2D(2, padding="same", **CHANNELS_LAST),
            layers.Flatten(**CHANNELS_LAST),
            layers.Dropout(0.2),
            layers.Dense(_units(128, width), activation="relu"),
            layers.Dropout(0.2),
        ],
        name="reader",
    )
    return Apart(network, name="body")


ARCHITECTURES: dict[str, tuple[Any, Any, float]] = {
    "compact": (_compact_localization, _compact_body, 0.02),
    "large": (_compact_localization, _large_body, 0.02),
    "reference": (_reference_localization, _reference_body, 0.0),
    "template": (_compact_localization, _template_body, 0.0),
    "cnn": (_compact_localization, _cnn_body, 0.02),
    "fcn": (_fcn_localization, _fcn_body, 0.02),
    "adder": (_compact_localization, _adder_body, 0.02),
}
"""The named architectures: localization network, body of the classifier, identity penalty."""
