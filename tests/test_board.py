"""The log for TensorBoard, read again by TensorBoard's own reader."""

import pytest
from PIL import Image

import stn
from stn.tool import board, runs
from stn.tool.config import Config, UserError

RECORD = {"loss": 1.5, "val_loss": 1.25, "accuracy": 0.5, "val_accuracy": 0.75, "seconds": 3.0}


@pytest.fixture
def run(tmp_path):
    run = runs.Run(tmp_path / "run")
    run.frames_folder.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(run.frame_file(1))
    return run


def test_a_log_that_nobody_wants_is_not_written(run):
    log = board.Board(run, wanted=False)
    log.add(1, RECORD, run.frame_file(1))
    log.close()
    assert not run.board_folder.exists()


def test_a_package_that_is_missing_is_said_before_anything_else(tmp_path, shapes, monkeypatch):
    find = board.util.find_spec
    monkeypatch.setattr(
        board.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    config = Config(data="mnist", data_dir=str(shapes), batch_size=16, tensorboard=True)
    with pytest.raises(UserError, match=r"Expected the package tensorboard .*\[tensorboard\]"):
        stn.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_numbers_and_pictures_are_there_at_once(run):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader",
        reason='no tensorboard: pip install -e ".[tensorboard]"',
    )
    log = board.Board(run, wanted=True)
    assert not run.board_folder.exists()
    log.add(1, RECORD, run.frame_file(1))
    (file,) = run.board_folder.iterdir()
    events = [parse(record) for record in reader.RawEventFileLoader(str(file)).Load()]
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    numbers = {tag: value.simple_value for tag, (_, value) in values.items() if tag != "monitor"}
    assert numbers == {
        "loss/training": 1.5,
        "loss/validation": 1.25,
        "accuracy/training": 0.5,
        "accuracy/validation": 0.75,
    }
    assert {step for step, _ in values.values()} == {1}
    shown = values["monitor"][1].image
    assert (shown.width, shown.height) == (30, 20)
    assert shown.encoded_image_string == run.frame_file(1).read_bytes()
    log.close()
    run.clear()
    assert not run.board_folder.exists()


def parse(record):
    from tensorboard.compat.proto.event_pb2 import Event

    return Event.FromString(record)
