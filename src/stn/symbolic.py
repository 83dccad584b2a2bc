"""Our functions of tensors in functional models, where tensors are symbolic."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import keras

P = ParamSpec("P")
R = TypeVar("R")


def functional(
    check: Callable[[Any, dict[str, Any]], Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function of two tensors take symbolic Keras tensors, too, as those of `keras.ops` do.

    With one it becomes an operation of the model, which is saved with it: by the name of the
    function and the values of its options. The function takes two tensors, then options that Keras
    can serialize.

    Args:
        check: Called with the first tensor and the options where a tensor is symbolic, to raise a
            ValueError at what some backends make up: axes that are not known.

    Returns:
        A decorator.

    Example:
        >>> @functional()
        ... def shift(images, shifts, *, factor=1.0):
        ...     return images + factor * shifts[:, None, None]
        >>> shift(keras.Input((8, 8, 3)), keras.Input((3,)), factor=0.5).shape
        (None, 8, 8, 3)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        title = "".join(word.title() for word in function.__name__.split("_"))
        operation = type(title, (_Call,), {"__doc__": function.__doc__, "function": function})
        keras.saving.register_keras_serializable(package="stn")(operation)

        @functools.wraps(function)
        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            if not any(map(keras.utils.is_keras_tensor, (*args[:2], *kwargs.values()))):
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            (_, first), (_, second), *rest = bound.arguments.items()
            options = dict(rest)
            if check is not None:
                check(first, options)
            try:
                return operation(**options).symbolic_call(first, second)
            except ValueError as error:
                # Our own words, which Keras puts behind some on shapes that cannot be inferred.
                raise error.__context__ or error from None

        return either

    return decorate


class _Call(keras.Operation):
    """A function with its options."""

    function: Callable[..., Any]

    def __init__(self, *, name: str | None = None, **options: Any):
        super().__init__(name=name)
        if options.get("data_format", "") is None:
            options["data_format"] = keras.config.image_data_format()
        self.options = options

    def call(self, first: Any, second: Any) -> Any:
        """What the function returns."""
        return type(self).function(first, second, **self.options)

    def get_config(self) -> dict[str, Any]:
        """The options, for saving."""
        return {"name": self.name, **keras.saving.serialize_keras_object(self.options)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Call:
        """Create the operation from what `get_config` returned."""
        return cls(**keras.saving.deserialize_keras_object(config))
