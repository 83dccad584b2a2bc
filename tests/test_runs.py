"""Run folders, and files that are written wholly or not at all."""

import errno
import json
import os
import pathlib
import shutil
import stat
import subprocess

import pytest

from stn.tool import runs
from stn.tool.config import Config, UserError


@pytest.fixture
def run(tmp_path):
    """A run that has just been started."""
    run = runs.Run(tmp_path / "run")
    runs.write_text(run.config_file, Config(epochs=3).to_toml())
    runs.write_json(run.environment_file, {"format": runs.FORMAT, "stn": "0.1.0"})
    return run


def names(folder):
    return [path.name for path in folder.iterdir()]


# --- writing -------------------------------------------------------------------------------------


def test_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.json"
    runs.write_json(file, {"old": 1})
    with pytest.raises(ZeroDivisionError), runs.atomic(file) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert runs.read_json(file) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_error_while_writing_leaves_no_new_file(tmp_path):
    with pytest.raises(TypeError):
        runs.write_json(tmp_path / "a.json", {"value": object()})
    with pytest.raises(ZeroDivisionError), runs.atomic(tmp_path / "b.png"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_temporary_file_lies_beside_and_keeps_the_suffix(tmp_path):
    with runs.atomic(tmp_path / "deep" / "er" / "model.keras") as temporary:
        assert temporary.parent == tmp_path / "deep" / "er"
        assert temporary.suffix == ".keras"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"x")
    assert names(tmp_path / "deep" / "er") == ["model.keras"]


def test_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    runs.write_text(tmp_path / "ours", "x")
    usual, ours = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("usual", "ours"))
    assert oct(ours) == oct(usual)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, error):
    file = tmp_path / "a.json"
    runs.write_json(file, 1)

    def fsync(handle):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(error)):
        runs.write_json(file, 2)
    assert runs.read_json(file) == 1
    assert names(tmp_path) == ["a.json"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; only the superuser of a machine can have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk):
    file = small_disk / "a.txt"
    runs.write_text(file, "old")
    with pytest.raises(OSError, match="No space left"):
        runs.write_text(file, "x" * 100_000)
    assert file.read_text(encoding="utf-8") == "old"
    assert names(small_disk) == ["a.txt"]


def test_place_that_cannot_be_written():
    with pytest.raises(OSError), runs.atomic("/proc/stn/run.json"):
        pytest.fail("there is no such place")


def test_place_that_cannot_be_written_is_named_as_asked():
    with pytest.raises(OSError) as raised:
        runs.write_text(pathlib.Path("/proc/x.png"), "")
    assert raised.value.filename == "/proc/x.png"


# --- opening -------------------------------------------------------------------------------------


def test_open(run):
    opened = runs.Run.open(str(run.path))
    assert opened.config == Config(epochs=3)
    assert opened.environment["format"] == runs.FORMAT
    assert opened.history == []
    assert os.fspath(opened) == str(run.path)


def test_open_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"Expected a run folder\. Received: '.*none'.*not exist"):
        runs.Run.open(tmp_path / "none")


@pytest.mark.parametrize("missing", ["config_file", "environment_file"])
def test_open_what_is_not_a_run(run, missing):
    getattr(run, missing).unlink()
    with pytest.raises(UserError, match=r"which has no config.toml and environment.json"):
        runs.Run.open(run.path)


def test_open_file(run, tmp_path):
    with pytest.raises(UserError, match=r"Expected a run folder.*config.toml', a file; the") as of:
        runs.Run.open(run.config_file)
    assert str(of.value).endswith(f"the folder is {str(run.path)!r}")
    other = tmp_path / "other" / "notes.txt"
    runs.write_text(other, "")
    with pytest.raises(UserError, match=r"notes.txt', a file$"):
        runs.Run.open(other)


def test_open_another_layout_version(run):
    runs.write_json(run.environment_file, {"format": 99, "stn": "9.9"})
    with pytest.raises(UserError, match=r"layout version 1\. .*version 99, written by stn 9\.9"):
        runs.Run.open(run.path)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe", b"[1]", b"null"])
def test_open_damaged_run(run, content):
    run.environment_file.write_bytes(content)
    with pytest.raises(UserError, match=r"JSON.*environment\.json"):
        runs.Run.open(run.path)


@pytest.mark.parametrize("name", ["history", "metrics", "dataset"])
def test_damaged_results(run, name):
    getattr(run, f"{name}_file").write_text('[{"epoch": 1', encoding="utf-8")
    with pytest.raises(UserError, match=rf"readable JSON file.*{name}\.json"):
        getattr(run, name)


def test_what_a_file_lacks_is_named(run):
    runs.write_json(run.metrics_file, {"test": {"accuracy": 0.5}})
    assert run.metrics["test"]["accuracy"] == 0.5 and run.metrics.get("loss") is None
    for missing in (lambda: run.metrics["loss"], lambda: run.metrics["test"]["count"]):
        with pytest.raises(UserError, match=r"Expected '(loss|count)' in .*metrics\.json"):
            missing()
    for about in (
        {"class_names": 3, "image_shape": [1, 1, 1], "input_shape": [1, 1, 1]},
        {"class_names": ["a"], "image_shape": "1x1", "input_shape": [1, 1, 1]},
        {"class_names": ["a"]},
    ):
        runs.write_json(run.dataset_file, about)
        with pytest.raises(UserError, match=r"Expected .*(class_names|image_shape).*dataset\.json"):
            _ = run.dataset["image_shape"]


def test_damaged_config(run):
    run.config_file.write_text("epochs =", encoding="utf-8")
    with pytest.raises(UserError, match=r"readable TOML file.*config\.toml"):
        _ = run.config


# --- the folder ----------------------------------------------------------------------------------


def test_frames_are_in_the_order_of_the_epochs(run):
    for epoch in (1000, 10, 0, 2, 999):
        runs.write_text(run.frame_file(epoch), "")
    runs.write_text(run.frames_folder / "mine.png", "")
    names = [frame.name for frame in run.frames()]
    order = ["000", "002", "010", "999", "1000"]
    assert names == [f"epoch-{epoch}.png" for epoch in order]


def test_clear_deletes_the_files_of_the_run_only(run):
    for name, file in vars(run).items():
        if name.endswith("_file"):
            runs.write_text(file, "x")
    runs.write_text(run.frame_file(0), "x")
    for suffix in (".json", ".csv", ".png"):  # of what is no more
        runs.write_text(run.sweep_file("rotation").with_suffix(suffix), "x")
    (run.path / ".unfinished-model-abc.keras").touch()  # of a process that was killed
    (run.frames_folder / ".unfinished-epoch-001-abc.png").touch()
    mine = [run.path / "notes.txt", run.path / "sweep.png", run.frames_folder / "mine.png"]
    for file in mine:
        runs.write_text(file, "mine")
    run.clear()
    assert sorted(p for p in run.path.rglob("*") if p.is_file()) == sorted(mine)


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(UserError, match=r"Expected a file to write\. Received: .*, a folder"):
        runs.write_text(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_json_is_readable_by_people(tmp_path):
    runs.write_json(tmp_path / "a.json", {"a": 1, "b": [1.5]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) > 3
    assert json.loads(text) == {"a": 1, "b": [1.5]}
