"""The tool around the library: configuration, data, training, evaluation, reports, command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stn.tool.config import Config
    from stn.tool.runs import Run


def train(config: Config, out: str | os.PathLike[str], **options: Any) -> Run:
    """Train as `stn train` does, on the backend of the configuration.

    Args:
        config: What to do.
        out: The run folder to write.
        **options: `resume`, `overwrite` and `progress`, as in `stn.tool.training.train`.

    Returns:
        The finished run.

    Raises:
        UserError: If something given cannot be used; nothing has been written then.
        TrainingError: If the loss is not a number any more; the last checkpoint is kept.

    Example:
        >>> import stn
        >>> run = stn.train(stn.Config(epochs=1), "runs/quick")  # doctest: +SKIP
    """
    from stn.tool.config import select_backend

    select_backend(config.backend)
    if config.task == "colocalization":
        from stn.tool import colocalization as training
    else:
        from stn.tool import training

    return training.train(config, out, **options)
