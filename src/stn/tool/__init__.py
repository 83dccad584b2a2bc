"""The tool around the library: configuration, data, training, evaluation, reports, command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stn.tool.config import Config
    from stn.tool.runs import Run


def train(config: Config, out: str | os.PathLike[str], **options: Any) -> Run:
    """Train as `stn train` does; see `stn.tool.training.train` for all there is to know.

    The backend of the configuration is chosen first, before Keras is imported.

    Example:
        >>> import stn
        >>> run = stn.train(stn.Config(epochs=1), "runs/quick")  # doctest: +SKIP
    """
    from stn.tool.config import select_backend

    select_backend(config.backend)
    from stn.tool import training

    return training.train(config, out, **options)
