"""Localization networks: those known by name, and what the layer has to know of any other."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def feature_shape(network: Any, shape: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """The shape of what a localization network makes of inputs of a shape; builds it if need be.

    Args:
        network: Any Keras layer or model; it need not say the shape of its output by itself.
        shape: `(batch, ...)` of the input, as in `build`.
        dtype: Type of the input.

    Raises:
        ValueError: If the input does not suit it, or its output is not one tensor of known size.

    Example:
        >>> feature_shape(layers.Flatten(), (None, 4, 3, 1), "float32")
        (None, 12)
    """
    images = keras.KerasTensor(shape, dtype)
    if not network.built:
        if type(network).build is layers.Layer.build:  # it has only a `call`, to be followed
            network(images)
        else:
            network.build(shape)
    try:
        found = network.compute_output_shape(shape)
    except NotImplementedError:
        found = getattr(network.compute_output_spec(images), "shape", None)
    if not found or not all(isinstance(n, int) for n in found[1:]):
        raise ValueError(f"it gives {found}, not one tensor (batch, features) of known size")
    return tuple(found)


def _cnn(size: tuple[int, ...], data_format: str, dtype: Any) -> keras.Sequential:
    """Two 5x5 convolutions on a copy of at most 32 pixels; keeps where things are."""
    n = len(size)
    options = {"data_format": "channels_last", "dtype": dtype}
    convolution = {2: layers.Conv2D, 3: layers.Conv3D}[n]
    pooling = {2: layers.MaxPooling2D, 3: layers.MaxPooling3D}[n]
    return keras.Sequential(
        [
            *_channels_last(data_format, n),
            *_reduce(size, 32, dtype),
            convolution(20, 5, padding="same", activation="relu", **options),
            pooling(padding="same", **options),
            convolution(20, 5, padding="same", activation="relu", **options),
            pooling(padding="same", **options),
            layers.Flatten(**options),
            layers.Dense(50, activation="relu", dtype=dtype),
        ],
        name="cnn",
    )


def _mlp(size: tuple[int, ...], data_format: str, dtype: Any) -> keras.Sequential:
    """Two dense layers on a copy of at most 32 pixels."""
    return keras.Sequential(
        [
            *_channels_last(data_format, len(size)),
            *_reduce(size, 32, dtype),
            layers.Flatten(data_format="channels_last", dtype=dtype),
            layers.Dense(64, activation="relu", dtype=dtype),
            layers.Dense(64, activation="relu", dtype=dtype),
        ],
        name="mlp",
    )


def _channels_last(data_format: str, dimensions: int) -> list[layers.Layer]:
    # TensorFlow has no channels-first convolution on the CPU.
    axes = (*range(2, dimensions + 2), 1)
    return [layers.Permute(axes)] if data_format == "channels_first" else []


def _reduce(size: tuple[int, ...], limit: int, dtype: Any) -> list[layers.Layer]:
    factor = -(-max(size) // limit)
    pooling = {2: layers.AveragePooling2D, 3: layers.AveragePooling3D}[len(size)]
    if factor == 1:
        return []
    return [pooling(factor, padding="same", data_format="channels_last", dtype=dtype)]


LOCALIZATIONS = {"cnn": _cnn, "mlp": _mlp}
"""The named localization networks: `(size, data_format, dtype) -> model`."""
