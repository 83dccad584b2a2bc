"""Spatial transformer networks for Keras 3 (TensorFlow, JAX and PyTorch).

Importing this package is cheap: a deep-learning backend is imported when the first name that
needs one is used, so `KERAS_BACKEND` can still be set after `import stn`. Where Keras is there
already, our layers are registered with it at once, so that it can load a saved model.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "stn.samplers": ("sample",),
    "stn.families": ("Transform",),
    "stn.deformations": ("Diffeomorphic", "Flow", "ThinPlateSpline"),
    "stn.transforms": (
        "Composition",
        "TRANSFORMS",
        "get_transform",
        "transform_boxes",
        "transform_points",
        "warp",
    ),
    "stn.layers": ("SpatialTransformer",),
    "stn.probing": ("probe",),
    "stn.models": ("classifier",),
    "stn.tool.config": ("Config",),
    "stn.tool.runs": ("Run",),
    "stn.tool": ("train",),
    "stn.tool.evaluation": ("evaluate",),
    "stn.tool.prediction": ("predict",),
    "stn.tool.inspection": ("inspect",),
    "stn.tool.comparison": ("compare",),
    "stn.tool.report": ("write_report",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])

if TYPE_CHECKING:
    from stn.deformations import Diffeomorphic, Flow, ThinPlateSpline
    from stn.families import Transform
    from stn.layers import SpatialTransformer
    from stn.models import classifier
    from stn.probing import probe
    from stn.samplers import sample
    from stn.tool import train
    from stn.tool.comparison import compare
    from stn.tool.config import Config
    from stn.tool.evaluation import evaluate
    from stn.tool.inspection import inspect
    from stn.tool.prediction import predict
    from stn.tool.report import write_report
    from stn.tool.runs import Run
    from stn.transforms import (
        TRANSFORMS,
        Composition,
        get_transform,
        transform_boxes,
        transform_points,
        warp,
    )


def __getattr__(name: str) -> Any:
    if name == "grids":  # the module that owns the coordinates; the others' names are all here
        return import_module("stn.grids")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'stn' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "keras" in sys.modules:
    import_module("stn.models")
