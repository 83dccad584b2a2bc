"""Looking inside a trained model: what its spatial transformer does to each image."""

from __future__ import annotations

import itertools
from typing import Any

import keras
from keras import layers, ops

from stn import grids, samplers
from stn.layers import SpatialTransformer


def probe(model: keras.Model, name: str = "stn") -> keras.Model:
    """A model that shows what a spatial transformer inside another model does.

    Args:
        model: A functional or sequential model that has been built.
        name: The name of the `SpatialTransformer` in it, or in a model inside it.

    Returns:
        A model of the same inputs and weights that returns a dictionary: `"images"`, what the
        layer gives; `"params"` `(batch, transform.size)`; `"grid"`, where in its input each
        output pixel is read, `(batch, *output_size, 2)`; and `"inverse"`, where in its output each
        pixel of its input is seen, `(batch, *size, 2)`, NaN where that was not found. Points are
        normalized; in volumes they have three coordinates. With several heads each is a list.

    Raises:
        ValueError: If the model has no such layer, calls it more than once, or it is not a
            `SpatialTransformer`.

    Example:
        >>> import keras, stn
        >>> images = keras.Input((8, 8, 1))
        >>> straight = stn.SpatialTransformer("attention", localization="mlp", name="stn")(images)
        >>> seen = stn.probe(keras.Model(images, straight))
        >>> sorted(seen.output), seen.output["params"].shape
        (['grid', 'images', 'inverse', 'params'], (None, 3))
    """
    found = _find(model, name)
    if found is None:
        names = [layer.name for layer in model.layers]
        raise ValueError(
            f"Expected a model with a layer {name!r}, functional or sequential and built. "
            f"Received: {model!r} with layers {names}"
        )
    layer, images = found
    if not isinstance(layer, SpatialTransformer):
        raise ValueError(
            f"Expected the layer {name!r} to be a SpatialTransformer. Received: {layer!r}"
        )
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, _Probe(layer, name="probe")(images))


def _find(model: Any, name: str) -> tuple[layers.Layer, Any] | None:
    """A layer of a model, or of one inside it, and what it is called on, as a symbolic tensor."""
    if not getattr(model, "inputs", None):
        return None
    for layer in model.layers:
        if layer.name == name:
            return layer, _called_on(model, layer)
    for layer in model.layers:
        if isinstance(layer, keras.Model) and (found := _find(layer, name)):
            inner, images = found
            return inner, keras.Model(layer.inputs, images)(_called_on(model, layer))
    return None


def _called_on(model: keras.Model, layer: layers.Layer) -> Any:
    """The input of a layer in a model, which may not be the only one that calls it."""
    graph: Any = model._functional if isinstance(model, keras.Sequential) else model
    nodes = itertools.chain(*graph._nodes_by_depth.values())
    calls = [node for node in nodes if node.operation is layer]
    if len(calls) != 1:
        raise ValueError(
            f"Expected a model that calls the layer {layer.name!r} once. "
            f"Received: {len(calls)} calls"
        )
    inputs = calls[0].input_tensors
    return inputs if len(inputs) > 1 else inputs[0]


class _Probe(layers.Layer):
    """What a transformer makes of its input, and how."""

    def __init__(self, transformer: SpatialTransformer, **kwargs: Any):
        super().__init__(dtype=transformer.dtype_policy, **kwargs)
        self.transformer = transformer

    def call(self, images: Any) -> dict[str, Any]:
        layer = self.transformer
        images = ops.cast(images, layer.compute_dtype)
        size = samplers.image_size(images, layer.data_format)
        found = layer.localize(images, training=False)
        found = found if layer.heads > 1 else [found]
        grids_ = [
            layer._grid(params, size, output_size)
            for params, output_size in zip(found, layer._output_sizes(size), strict=True)
        ]
        regular = grids.regular(size, layer.align_corners)[None].astype("float32")
        result = {
            "images": [layer._read(images, grid, layer.sampler) for grid in grids_],
            "params": found,
            "grid": [ops.stack(grid, axis=-1) for grid in grids_],
            "inverse": [
                layer.transform.move_back(
                    params, regular, size=size, align_corners=layer.align_corners
                )
                for params in found
            ],
        }
        return result if layer.heads > 1 else {key: value[0] for key, value in result.items()}
