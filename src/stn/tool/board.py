"""The log of a run for TensorBoard, by its own writer, which needs none of the backends."""

from __future__ import annotations

import time
from importlib import import_module, util
from pathlib import Path
from typing import Any

from PIL import Image

from stn.tool import runs
from stn.tool.config import UserError

_TAGS = {
    "loss": "loss/training",
    "val_loss": "loss/validation",
    "accuracy": "accuracy/training",
    "val_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}


class Board:
    """Writes scalars and pictures of a run where TensorBoard finds them.

    Args:
        run: The run; nothing is written to its folder before the first `add`.
        wanted: Do anything at all.

    Raises:
        UserError: If it is wanted, and the package is missing.
    """

    def __init__(self, run: runs.Run, *, wanted: bool):
        self._folder, self._wanted = run.board_folder, wanted
        self._writer: Any = None
        if wanted and util.find_spec("tensorboard") is None:
            raise UserError(
                "Expected the package tensorboard for --tensorboard. Received: no module "
                "'tensorboard'; type: pip install -e \".[tensorboard]\""
            )

    def add(self, epoch: int, numbers: dict[str, Any], picture: Path) -> None:
        """Add the numbers and the monitor's picture of an epoch; they can be seen at once."""
        if not self._wanted:
            return
        event = import_module("tensorboard.compat.proto.event_pb2")
        summary = import_module("tensorboard.compat.proto.summary_pb2")
        if self._writer is None:
            writer = import_module("tensorboard.summary.writer.event_file_writer")
            self._writer = writer.EventFileWriter(str(self._folder))
        values = [
            summary.Summary.Value(tag=tag, simple_value=numbers[key])
            for key, tag in _TAGS.items()
            if key in numbers
        ]
        with Image.open(picture) as image:
            width, height = image.size
        shown = summary.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=picture.read_bytes()
        )
        values.append(summary.Summary.Value(tag="monitor", image=shown))
        told = summary.Summary(value=values)
        self._writer.add_event(event.Event(wall_time=time.time(), step=epoch, summary=told))
        self._writer.flush()

    def close(self) -> None:
        """Close the log; what was added is there anyway."""
        if self._writer is not None:
            self._writer.close()
