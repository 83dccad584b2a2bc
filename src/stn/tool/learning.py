"""What a run trains, and how: the classifier of a configuration, its loss, its optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from stn import models
from stn.layers import SpatialTransformer
from stn.tool import environment
from stn.tool.config import Config, UserError


def check(config: Config) -> None:
    """Raise a UserError if no data could make a model of this configuration."""
    if config.steps_per_execution > 1 and keras.backend.backend() == "torch":
        raise UserError(
            "Expected steps_per_execution to be 1 on PyTorch, where Keras supports no other. "
            f"Received: steps_per_execution={config.steps_per_execution}"
        )
    if config.transform == "none":
        return
    try:
        SpatialTransformer(config.transform, **_options(config))
    except ValueError as error:
        raise UserError(str(error)) from error


def _options(config: Config) -> dict[str, Any]:
    """What a configuration says of the layer alone."""
    return {
        "sampler": config.sampler,
        "heads": config.heads,
        "initialization": config.initialization,
        "bounds": config.bounds,
        "iterations": config.iterations,
        "localization_size": config.localization_size,
        "frame_penalty": config.frame_penalty,
        "gradient_clip": config.gradient_clip,
    }


def build(
    config: Config,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    output_size: int | tuple[int, int] | None = None,
    steps: int,
    background: np.ndarray | None = None,
) -> keras.Model:
    """Build and compile the model of a configuration.

    Args:
        config: What was asked.
        input_shape: `(height, width, channels)` of the distorted images.
        num_classes: The number of classes.
        output_size: `(height, width)` of what the transformer passes on; that of the images by
            default.
        steps: Training steps an epoch, for the learning-rate schedule.
        background: `(channels,)` in [0, 255], what lies around what the images show; None if that
            differs from one to the next. For `padding="background"`.

    Raises:
        UserError: If the images do not suit the architecture, or an option the family.
    """
    check(config)
    padding, fill = _outside(config.padding, background)
    usual = keras.config.dtype_policy()
    try:
        if config.precision == "bfloat16":
            keras.config.set_dtype_policy("mixed_bfloat16")
        model = models.classifier(
            config.model,
            input_shape=input_shape,
            num_classes=num_classes,
            transform=config.transform,
            output_size=output_size,
            padding=padding,
            fill_value=fill,
            pooling=config.pooling,
            parameters=config.parameters,
            standardize=config.standardize,
            identity_penalty=config.identity_penalty,
            **_options(config),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    finally:
        keras.config.set_dtype_policy(usual)
    optimizer = _optimizer(config, localization_weights(model), steps)
    model.compile(
        optimizer,
        loss=_smoothed_loss(num_classes, config.label_smoothing),
        # Its variables exist from now on: made in the first step, that would be traced twice.
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        steps_per_execution=config.steps_per_execution,
        # Measured: TensorFlow's own CPU kernels train these networks 1.7 to 2.8 times faster than
        # what XLA makes of them there (docs/experiments.md). For PyTorch it would be torch.compile.
        jit_compile=keras.backend.backend() == "jax"
        or (keras.backend.backend() == "tensorflow" and environment.has_accelerator()),
    )
    optimizer.build(model.trainable_variables)
    return model


def _outside(padding: str, background: np.ndarray | None) -> tuple[str, Any]:
    """The padding of the layer, and its fill value."""
    if padding != "background":
        return padding, 0.0
    if background is None:
        return "border", 0.0
    fill = (background / 255).tolist()  # as the model scales its images before it reads them
    return ("constant", fill) if any(fill) else ("zeros", 0.0)


def fit(model: keras.Model, batches: keras.utils.PyDataset, *callbacks: Any) -> dict[str, Any]:
    """Train a compiled model for one epoch.

    Args:
        model: What to train.
        batches: `(inputs, labels)` by their number, taken in order; all have the same types and,
            but for the first axis, the same shapes.
        *callbacks: Of Keras.

    Returns:
        What Keras has logged, lists of one number each.
    """
    data = _pipeline(batches) if keras.backend.backend() == "tensorflow" else batches
    return model.fit(data, shuffle=False, verbose=0, callbacks=list(callbacks)).history


def _pipeline(batches: keras.utils.PyDataset) -> Any:
    """What Keras makes of batches for TensorFlow, but without tuning itself.

    The thread that tunes a pipeline sleeps twice as long every time, 10 ms at first, and may miss
    that an epoch is over: the epoch then waits until it wakes, as long again as it took at worst
    (docs/experiments.md).
    """
    import tensorflow as tf

    signature = keras.tree.map_structure(
        lambda part: tf.TensorSpec((None, *part.shape[1:]), part.dtype), batches[0]
    )
    pipeline = tf.data.Dataset.from_generator(
        lambda: (batches[i] for i in range(len(batches))), output_signature=signature
    )
    pipeline = pipeline.apply(tf.data.experimental.assert_cardinality(len(batches)))
    options = tf.data.Options()
    options.autotune.enabled = False
    return pipeline.prefetch(2).with_options(options)


def localization_weights(model: keras.Model) -> list[Any]:
    """The trainable variables of the transformer: localization network and head, in this order."""
    try:
        return list(model.get_layer(models.TRANSFORMER).trainable_variables)
    except ValueError:
        return []


def gradient_size(optimizer: Any, variables: Iterable[Any]) -> float | None:
    """The size of the gradient of some variables lately, as Adam remembers it.

    Args:
        optimizer: The optimizer of a model that was trained.
        variables: Some of its variables.

    Returns:
        The root mean square of the gradient, averaged over some ten steps; None if there is no step
        yet, no variable, or the optimizer is not an Adam. Adam remembers squares for a thousand
        steps, in which a gradient that is gone would still be seen.
    """
    memory = getattr(optimizer, "_momentums", None)
    done = int(keras.ops.convert_to_numpy(optimizer.iterations))
    if not memory or not done:
        return None
    means = [
        np.asarray(keras.ops.convert_to_numpy(memory[optimizer._get_variable_index(variable)]))
        for variable in variables
    ]
    if not means:
        return None
    size = np.sqrt(np.square(np.concatenate([m.ravel() for m in means]), dtype="float64").mean())
    return float(size / (1 - optimizer.beta_1**done))


class _Adam(keras.optimizers.Adam):
    """Adam with a learning rate of its own for some variables, which may rest at first.

    A factor on the gradient would do nothing: Adam divides by the size of the gradient.
    """

    def __init__(self, rate: Any, own: Iterable[Any], factor: float, rest: int):
        super().__init__(rate, name="adam")
        # By their paths, for an optimizer takes the variables it holds for its own.
        self._paths = frozenset(variable.path for variable in own)
        self._factor, self._rest = factor, rest

    def build(self, variables: list[Any]) -> None:
        """Create the memory for these variables."""
        super().build(variables)
        own = [variable for variable in variables if variable.path in self._paths]
        self._own = frozenset(map(self._get_variable_index, own))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        if self._get_variable_index(variable) in self._own:
            awake = keras.ops.cast(self.iterations >= self._rest, variable.dtype)
            learning_rate = learning_rate * (self._factor * awake)
            if self.weight_decay and self._use_weight_decay(variable):
                rate = keras.ops.cast(learning_rate * self.weight_decay, variable.dtype)
                variable.assign(variable - variable * rate)
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """That of all other variables; what has a rate of its own decays at that."""
        others = [v for v in variables if self._get_variable_index(v) not in self._own]
        super()._apply_weight_decay(others)


def _optimizer(config: Config, localization: list[Any], steps: int) -> keras.optimizers.Optimizer:
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        warmup = min(steps, config.epochs * steps // 2)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, config.epochs * steps - warmup),
            warmup_target=config.learning_rate,
            warmup_steps=warmup,
        )
    if config.localization_rate == 1 and not config.hold_epochs:
        optimizer = keras.optimizers.Adam(rate)
    else:
        rest = config.hold_epochs * steps
        optimizer = _Adam(rate, localization, config.localization_rate, rest)
    if config.weight_decay:
        optimizer.weight_decay = config.weight_decay
        # A shift or a factor of normalization is no weight: nothing is won by making it small.
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


def _smoothed_loss(num_classes: int, smoothing: float) -> Any:
    if not smoothing:
        return "sparse_categorical_crossentropy"

    def smoothed_sparse_categorical_crossentropy(labels: Any, probabilities: Any) -> Any:
        labels = keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32")
        labels = keras.ops.one_hot(labels, num_classes)
        return keras.losses.categorical_crossentropy(
            labels, probabilities, label_smoothing=smoothing
        )

    return smoothed_sparse_categorical_crossentropy
