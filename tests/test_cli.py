"""Every verb of the command, as a person uses it, and what it says to mistakes."""

import csv
import gzip
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import stn
from conftest import draw_shapes, write_idx
from stn.tool import controls, printing, runs
from stn.tool.config import BACKENDS, UserError
from stn.tool.data import signs

pytestmark = pytest.mark.once

# --- verbs that need no run ----------------------------------------------------------------------


def test_version(command):
    assert command("--version") == (0, f"stn {stn.__version__}\n", "")


def test_help_names_every_verb_and_every_key(command):
    code, out, _ = command("--help")
    assert code == 0
    for verb in ("train", "evaluate", "predict", "inspect", "compare", "report", "recipes", "data"):
        assert verb in out
    code, out, _ = command("train", "--help")
    assert code == 0
    for key in stn.Config.model_fields:
        assert f"--{key.replace('_', '-')}" in out
    for text in (
        "default: compact",
        "One of: translation, rotation, rigid",
        "--resume",
        "--config",
    ):
        assert text in out


def test_help_fits_a_terminal_of_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command("train", "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) == 80
    assert "…" not in out  # the name of an option would be cut off
    panels = ("Options", "Data", "Model and transformer", "Training", "Switches")
    places = [out.index(f"╭─ {name} ─") for name in panels]
    assert places == sorted(places)


def test_recipes(command):
    code, out, err = command("recipes")
    assert (code, err) == (0, "")
    assert "tutorial" in out
    code, out, err = command("recipes", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["default"]


def test_a_recipe_is_printed_as_a_file_that_config_takes(command, tmp_path):
    for name in ("emnist-byclass", "default"):
        code, out, err = command("recipes", name)
        assert (code, err) == (0, "")
        file = tmp_path / "mine.toml"
        file.write_text(out, encoding="utf-8")
        expected = stn.Config(recipe=name).replace(recipe="default")
        assert stn.Config.load(file) == expected
    code, out, err = command("recipes", "tutorial", "--json")
    assert json.loads(out)["batch_size"] == 1024
    code, out, err = command("recipes", "nonsense")
    assert (code, out) == (2, "")
    assert "Expected recipe to be one of" in err


def test_data_list(command):
    code, out, err = command("data", "list")
    assert (code, err) == (0, "")
    assert "697,932" in out
    assert 'pip install -e ".[tfds]"' in out
    code, out, err = command("data", "list", "--json")
    assert (code, err) == (0, "")
    sources = {source["name"]: source for source in json.loads(out)}
    assert sources["glyphs"]["classes"] == 62


def test_data_show(command, tmp_path):
    code, out, err = command("data", "show", "glyphs", "--count", 5, "--out", tmp_path / "a.png")
    assert (code, out, err) == (0, f"{tmp_path / 'a.png'}\n", "")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 5 * 84
    code, _, err = command("data", "show", "glyphs", "--split", "dev", "--out", tmp_path / "b.png")
    assert code == 2
    assert "Expected" in err
    assert not (tmp_path / "b.png").exists()


def test_data_show_distorted(command, tmp_path):
    for name in ("none", "E", "RTS"):
        options = ["--count", 2, "--distort", name, "--out", tmp_path / f"{name}.png"]
        code, out, err = command("data", "show", "glyphs", *options)
        assert (code, out, err) == (0, f"{tmp_path / name}.png\n", "")
    plain, bent, larger = ((tmp_path / f"{n}.png").read_bytes() for n in ("none", "E", "RTS"))
    assert len({plain, bent, larger}) == 3
    code, _, err = command("data", "show", "glyphs", "--distort", "X", "--out", tmp_path / "b.png")
    assert code == 2
    assert "Expected distort to be 'none', 'R', 'RTS', 'P', 'E', 'T' or 'TC'" in err
    assert not (tmp_path / "b.png").exists()


# --- train ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a folder of images per class, and no test images beside."""
    folder = tmp_path_factory.mktemp("pictures")
    names = ("bar", "dash", "plus [x]", "ring")
    for i, (image, label) in enumerate(zip(*draw_shapes(6, 3), strict=True)):
        (folder / names[label]).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"{i}.png")
    return folder


def test_train_with_file_and_flags_over_an_old_run(command, pictures, tmp_path):
    """The control without transformer, in a folder that holds an older run and other files."""
    run = runs.Run(tmp_path / "run")
    runs.write_text(run.config_file, "epochs = 99")
    runs.write_json(run.environment_file, {"format": 0})
    runs.write_text(run.frame_file(77), "old")
    runs.write_text(run.path / "notes.txt", "mine")
    file = tmp_path / "my.toml"
    file.write_text('epochs = 5\nbatch_size = 8\ntransform = "none"\n', encoding="utf-8")
    options = ["--config", file, "--epochs", 1, "--data", f"folder:{pictures}", "--out", run.path]
    code, out, err = command("train", *options)
    assert code == 2
    assert "--overwrite" in err
    assert runs.read_json(run.environment_file) == {"format": 0}

    code, out, err = command("train", *options, "--overwrite")
    assert code == 0, err
    assert out == f"{run.path}\n"
    assert "epoch   1  loss" in err
    assert "test accuracy" in err
    run = stn.Run.open(run.path)
    code, out, err = command("train", "--resume", run.path, "--json", "--watch")
    assert code == 0, err
    assert json.loads(out) == {"run": str(run.path), **run.metrics}
    assert "Watch it at http://127.0.0.1:" in err
    found = run.config
    assert (found.epochs, found.batch_size, found.transform) == (1, 8, "none")
    assert found.distort == "none"  # that of folders
    assert run.dataset["class_names"] == ["bar", "dash", "plus [x]", "ring"]
    assert [frame.name for frame in run.frames()] == ["epoch-000.png", "epoch-001.png"]
    assert (run.path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert run.report_file.exists()
    code, out, err = command("evaluate", run.path)
    assert code == 0, err
    assert "plus [x]" in out


def test_train_by_relative_paths_can_go_on_from_elsewhere(command, pictures, tmp_path, monkeypatch):
    from stn.tool import training

    (tmp_path / "here").mkdir()
    shutil.copytree(pictures, tmp_path / "here" / "pictures")
    monkeypatch.setattr(training, "Monitor", lambda *args: pytest.fail("far enough"))
    monkeypatch.chdir(tmp_path / "here")
    seen = []
    monkeypatch.setattr(training, "_check_data", lambda config, *rest: seen.append(config))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        stn.train(stn.Config(data="folder:pictures", batch_size=8), tmp_path / "run")
    assert seen[0].data == f"folder:{tmp_path / 'here' / 'pictures'}"


@pytest.mark.slow
def test_traffic_signs_from_a_folder(command, tmp_path):
    """Crops of all sizes, more of some signs than of others, with a table beside them."""
    rng = np.random.default_rng(0)
    drawn = signs.read(splits=("train",), seed=1, train_per_class=9).train
    for i, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
        if label < 4 and i < 39 * (9 - label):
            path = tmp_path / "signs" / f"{label:05d}" / f"{i}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = tuple(int(n) for n in rng.integers(15, 80, 2))
            Image.fromarray(image).resize(size).save(path)
            (path.parent / "GT.csv").write_text("Filename;Width;Height;ClassId")
    for transform in ("projective", "none"):
        code, _, err = command(
            *("train", "--recipe", "traffic-signs", "--data", f"folder:{tmp_path / 'signs'}"),
            *("--epochs", 1, "--batch-size", 8, "--transform", transform),
            *("--out", tmp_path / transform),
        )
        assert code == 0, err
    run, control = (stn.Run.open(tmp_path / name) for name in ("projective", "none"))
    assert run.dataset["input_shape"] == [48, 48, 3]
    assert run.config.iterations == 2
    assert controls.differences(run, control) == []


def test_diverging_training_exits_with_1(command, shapes, tmp_path):
    out = tmp_path / "run"
    code, stdout, err = command(
        *("train", "--data", "mnist", "--data-dir", shapes, "--batch-size", 16, "--epochs", 2),
        *("--learning-rate", "1e30", "--schedule", "constant", "--out", out),
    )
    assert code == 1
    assert stdout == ""
    last = err.splitlines()[-1]
    assert last.startswith("stn: The loss became NaN or infinite in epoch 1, step ")
    assert "No epoch was finished. Train again with a smaller --learning-rate than 1e+30" in last
    assert "Traceback" not in err


# --- verbs that take a run -----------------------------------------------------------------------


def test_evaluate(command, trained):
    code, out, err = command("evaluate", trained.run.path)
    assert (code, err) == (0, "")
    assert f"accuracy {trained.run.metrics['accuracy']:.2%}" in out
    assert "20 images" in out
    assert len([line for line in out.splitlines() if line.startswith("│")]) == 10


def test_evaluate_json_is_json_and_nothing_else(command, trained, shapes, tmp_path):
    for file in shapes.glob("t10k*"):
        shutil.copy(file, tmp_path)
    code, out, err = command("evaluate", trained.run.path, "--json", "--data-dir", tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out) == trained.run.metrics["test"]


def test_evaluate_with_another_distortion(command, trained):
    code, out, err = command("evaluate", trained.run.path, "--distort", "TC", "--json")
    assert (code, out) == (2, "")
    assert "Expected images of shape (21, 21, 1)" in err


def test_predict(command, trained, tmp_path):
    digit = draw_shapes(1, 5)[0][2]
    variants = {
        "grey": digit,
        "inverted": 255 - digit,
        "color": np.repeat(digit[..., None], 3, axis=2),
        "clear": np.dstack([np.full_like(digit, 255)] * 3 + [digit]),
        "large": np.kron(digit, np.ones((5, 5), "uint8")),
    }
    paths = []
    for name, image in variants.items():
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(image).save(paths[-1])
    code, out, err = command("predict", trained.run.path, *paths, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [record["image"] for record in found] == [str(path) for path in paths]
    assert len({record["class"] for record in found}) == 1
    for record in found[:4]:
        assert record["probability"] == pytest.approx(found[0]["probability"], abs=1e-5)
    code, out, err = command("predict", trained.run.path, paths[0])
    assert (code, err) == (0, "")
    assert str(paths[0]) in out
    assert f"{found[0]['probability']:.1%}" in out


@pytest.fixture
def scans(tmp_path):
    """A folder of five images, one of them an animation of two, and three files that are none."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    drawn = [Image.fromarray(image) for image in draw_shapes(2, 5)[0]]
    for i, name in enumerate(("a.png", "b.jpg", "more/[red]a.png", "more/c.tif")):
        drawn[2 * i].save(folder / name)
    drawn[0].save(folder / "d.gif", save_all=True, append_images=drawn[1:2])
    (folder / "bad.png").write_bytes(b"junk")
    (folder / "empty.webp").touch()
    (folder / "notes.txt").write_text("not an image")
    return folder


GOOD = ["a.png", "b.jpg", "d.gif#0", "d.gif#1", "more/[red]a.png", "more/c.tif"]


def test_predict_a_folder_with_bad_files(command, trained, scans, tmp_path):
    """The bad ones are named and left out, whatever form the rest is printed in."""
    options = ["predict", trained.run.path, scans]
    code, out, err = command(*options, "--json", "--save-straightened", tmp_path / "out")
    assert code == 1
    found = json.loads(out)
    assert [record["image"] for record in found] == [str(scans / name) for name in GOOD]
    for record in found:
        with Image.open(record["straightened"]) as picture:
            assert picture.size == (14, 14)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 6
    first, second, last = err.splitlines()
    assert first.startswith("stn: Expected an image (PNG, ")
    assert f"Received: '{scans / 'bad.png'}', which cannot be read as one" in first
    assert f"'{scans / 'empty.webp'}', which cannot be read as one (it is empty)" in second
    assert last == "stn: Left out 2, for the reasons above. Classified 6"

    code, out, again = command(*options, "--csv")
    assert (code, again) == (1, err)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows] == [record["image"] for record in found]
    assert [row["class"] for row in rows] == [record["class"] for record in found]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        [record["probability"] for record in found], abs=1e-5
    )
    assert set(rows[0]) == {"image", "class", "probability"}

    code, out, again = command(*options)
    assert (code, again) == (1, err)
    for record in found:
        line = next(line for line in out.splitlines() if record["image"] in line)
        assert f"{record['probability']:.1%}" in line


def test_predict_patterns_and_standard_input(command, trained, scans, monkeypatch):
    listed = io.BytesIO(f"{scans / 'a.png'}\n\n{scans / 'more'}\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
    model = trained.run.model_file
    code, out, err = command("predict", model, scans / "[d]*", "-", "--json")
    assert (code, err) == (0, "")
    expected = ["d.gif#0", "d.gif#1", "a.png", "more/[red]a.png", "more/c.tif"]
    assert [r["image"] for r in json.loads(out)] == [str(scans / name) for name in expected]
    with (scans / "a.png").open() as image:
        monkeypatch.setattr(sys, "stdin", image)
        code, out, err = command("predict", model, "-", "--csv")
    assert (code, err) == (0, "")
    assert out.startswith("image,class,probability\n-,")
    assert len(out.splitlines()) == 2


def test_predict_prints_long_tables_in_parts(command, trained, scans, monkeypatch):
    monkeypatch.setattr(printing, "_TABLE_ROWS", 4)
    code, out, err = command("predict", trained.run.path, *[scans / "a.png"] * 10)
    assert (code, err) == (0, "")
    assert out.count("probability") == 3
    assert out.count("a.png") == 10


def test_predict_closes_the_json_whatever_happens(command, trained, scans, monkeypatch):
    from stn.tool import prediction

    original = prediction.predict_each

    def predict_each(*args, **options):
        for i, found in enumerate(original(*args, **options)):
            if i == 2:
                raise OSError(28, "No space left on device", "out")
            yield found

    monkeypatch.setattr(prediction, "predict_each", predict_each)
    code, out, err = command("predict", trained.run.path, scans / "d.gif", scans, "--json")
    assert code == 1
    assert len(json.loads(out)) == 2
    assert "The disk is full: out" in err


def test_report(command, trained, tmp_path):
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    run.report_file.unlink()
    assert command("report", run.path) == (0, f"{run.report_file}\n", "")
    assert run.report_file.exists()


def test_report_beside_a_control(command, trained, tmp_path):
    run, control = runs.Run(tmp_path / "run"), runs.Run(tmp_path / "control")
    for copy in (run, control):
        shutil.copytree(trained.run.path, copy.path)
    config = trained.run.config.replace(transform="none")
    runs.write_text(control.config_file, config.to_toml())
    code, out, err = command("report", run.path, "--control", control.path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "report": str(run.report_file),
        "bytes": run.report_file.stat().st_size,
    }
    assert "Beside the control" in run.report_file.read_text(encoding="utf-8")


@pytest.fixture
def digit(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(draw_shapes(1, 5)[0][2]).save(path)
    return path


def test_inspect(command, trained, digit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("inspect", trained.run.path, digit)
    assert (code, err) == (0, "")
    words, classes, path = out.splitlines()
    assert path == "digit-inspected.png"
    with Image.open(path) as picture:
        assert picture.width > 3 * 84
    code, out, err = command("inspect", trained.run.model_file, digit, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["words"] == words
    best = found["classes"][0]
    assert classes.startswith(f"{best['class']} {best['probability']:.1%}, ")
    code, out, _ = command("inspect", trained.run.path, digit, "--out", "other.png", "--json")
    assert json.loads(out)["picture"] == "other.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "digit-inspected.png",
        "digit.png",
        "other.png",
    ]


def test_inspect_in_a_terminal_that_shows_pictures(command, trained, digit, monkeypatch):
    monkeypatch.chdir(digit.parent)
    monkeypatch.setattr("stn.tool.terminal.protocol", lambda: "kitty")
    _, out, _ = command("inspect", trained.run.path, digit)
    assert "\x1b_G" not in out, "not into a file"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    (digit.parent / "digit-inspected.png").unlink()
    code, out, err = command("inspect", trained.run.path, digit)
    assert (code, err) == (0, "")
    assert out.startswith("\x1b_Gf=100,a=T,")
    assert len(out.split("\x1b\\")[-1].split()) >= 5, "the words and the classes below"
    assert [path.name for path in digit.parent.iterdir()] == ["digit.png"]


def test_compare(command, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained.run.path, other)
    page = tmp_path / "page.html"
    code, out, err = command("compare", trained.run.path, other, "--out", page)
    assert (code, err) == (0, "")
    for text in ("Test accuracy", f"{trained.run.metrics['accuracy']:.2%}", "other", str(page)):
        assert text in out
    code, out, err = command("compare", trained.run.path, other, "--out", page, "--json")
    assert (code, err) == (0, "")
    assert [one["name"] for one in json.loads(out)["runs"]] == ["trained", "other"]
    twin = tmp_path / "deep" / "other"
    shutil.copytree(other, twin)
    twin.joinpath("wall.npz").unlink()
    code, out, err = command("compare", other, twin, "--out", page)
    assert (code, err) == (0, "")
    assert f"{tmp_path.name}/other" in out
    assert "deep/other" in out
    assert "No test images of deep/other: there is no wall.npz" in out
    code, out, err = command("compare", other, "--out", tmp_path / "none.html")
    assert (code, out) == (2, "")
    assert "Expected two runs or more" in err
    assert not (tmp_path / "none.html").exists()


# --- mistakes ------------------------------------------------------------------------------------


def idx_folder(folder, *, images=None, labels=None, **contents):
    """A folder of MNIST files of 40 images; contents replace files, by the start of their name."""
    folder.mkdir()
    drawn, kinds = draw_shapes(10, 4)
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", drawn if images is None else images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", kinds if labels is None else labels)
    for start, content in contents.items():
        (file,) = folder.glob(f"{start.replace('_', '-')}-*")
        file.write_bytes(content)
    return ["--data", "mnist", "--data-dir", folder, "--batch-size", 8]


def truncated_gzip(folder):
    options = idx_folder(folder)
    (file,) = folder.glob("train-images*")
    (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes())[:-20])
    file.unlink()
    return options


def image_folder(folder, classes):
    """Folders of so many images each."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draw_shapes(1, i)[0][0]).save(folder / name / f"{i}.png")
    return ["--data", f"folder:{folder}", "--batch-size", 2]


def unreadable_folder(folder):
    """For the superuser everything is readable, but a loop of links is not for anyone."""
    folder.symlink_to(folder)
    return ["--data", "mnist", "--data-dir", folder]


def not_an_image(folder):
    options = image_folder(folder, {"a": 3, "b": 3})
    (folder / "a" / "1.png").write_bytes(b"\x89PNG junk")
    return options


def toml(folder, text):
    folder.mkdir()
    (folder / "my.toml").write_text(text, encoding="utf-8")
    return ["--config", folder / "my.toml"]


def other_backend():
    import keras

    return next(name for name in BACKENDS if name != keras.backend.backend())


MISTAKES = {
    "no data folder": (
        lambda d: ["--data", "mnist", "--data-dir", d / "none"],
        "Received: '{data}/none' (No such file or directory). Check --data-dir",
    ),
    "no files in it": (
        lambda d: [d.mkdir(), *["--data", "mnist", "--data-dir", d]][1:],
        "Expected a file of 'mnist': train-images-idx3-ubyte",
    ),
    "unreadable folder": (unreadable_folder, "Expected a readable folder with the files"),
    "data folder is a file": (
        lambda d: [d.write_text(""), *["--data", "mnist", "--data-dir", d]][1:],
        "(Not a directory)",
    ),
    "corrupt idx": (
        lambda d: idx_folder(d, train_images=b"\xde\xad\xbe\xef" * 9),
        "Expected an idx file of images, starting with 00 00 08 03",
    ),
    "cut idx": (
        lambda d: idx_folder(d, train_labels=b"\0\0\x08\1\0\0\0\x28" + b"\1" * 20),
        "Expected 40 bytes of labels",
    ),
    "truncated gzip": (truncated_gzip, "which ends too early"),
    "images for labels": (
        lambda d: idx_folder(d, train_labels=b"\0\0\x08\3" + b"\0\0\0\1" * 3 + b"\1"),
        "which holds images: it has the wrong name",
    ),
    "more labels than images": (
        lambda d: idx_folder(d, labels=np.arange(41) % 4),
        "Received: 40 images in",
    ),
    "labels out of range": (
        lambda d: idx_folder(d, labels=np.arange(40) % 4 + 7),
        "Expected labels from 0 to 9 for 'mnist'. Received: 10 as label number 3",
    ),
    "one class in idx files": (
        lambda d: idx_folder(d, labels=np.full(40, 3)),
        "Received: only label 3",
    ),
    "empty class": (lambda d: image_folder(d, {"a": 3, "b": 0}), "which is empty"),
    "one class": (lambda d: image_folder(d, {"a": 3}), "two or more classes. Received: '{data}'"),
    "one image a class": (lambda d: image_folder(d, {"a": 1, "b": 1}), "Add images"),
    "not an image": (not_an_image, "a/1.png', which cannot be read as one"),
    "unknown data": (lambda d: ["--data", "emnist/byclas"], "Did you mean 'emnist/byclass'?"),
    "unknown backend": (
        lambda d: ["--backend", "theano"],
        "Expected backend to be 'tensorflow', 'jax' or 'torch'. Received: backend='theano'",
    ),
    "another backend": (lambda d: ["--backend", other_backend()], "Expected "),
    "unknown transform": (
        lambda d: ["--transform", "afine"],
        "'diffeomorphic' or 'none'. Received: transform='afine'",
    ),
    "unknown model": (lambda d: ["--model", "huge"], "'fcn' or 'adder'. Received: model="),
    "unknown distortion": (lambda d: ["--distort", "rts"], "Received: distort='rts'"),
    "unknown recipe": (lambda d: ["--recipe", "best"], "Expected recipe to be one of"),
    "no epochs": (
        lambda d: ["--epochs", "0"],
        "Expected epochs to be greater than or equal to 1. Received: epochs=0",
    ),
    "home of nobody": (
        lambda d: ["--data", "mnist", "--data-dir", "~no-such-user/data"],
        "Received: '~no-such-user/data'",
    ),
    "epochs in words": (lambda d: ["--epochs", "x"], "Invalid value for '--epochs'"),
    "infinite rate": (
        lambda d: ["--learning-rate", "inf"],
        "Expected learning_rate to be a finite",
    ),
    "unknown option": (lambda d: ["--epoch", "3"], "No such option: --epoch"),
    "batch too large": (
        lambda d: [*idx_folder(d), "--batch-size", "37"],
        "Expected batch_size to be at most 36, the number of training images (after 4 were",
    ),
    "images too small": (
        lambda d: [*idx_folder(d), "--model", "reference"],
        "Expected images large enough for the 'reference' architecture. Received: input_shape=",
    ),
    "no config file": (lambda d: ["--config", d / "my.toml"], "Received: '{data}/my.toml'"),
    "broken config file": (lambda d: toml(d, "epochs"), "Expected a readable TOML file"),
    "unknown key": (lambda d: toml(d, "lr = 1"), "Expected a known configuration key"),
    "resume nothing": (lambda d: ["--resume", d], "'{data}', which does not exist"),
    "port alone": (lambda d: ["--port", 8000], "Expected --port together with --watch"),
    "resume and overwrite": (lambda d: ["--resume", d, "--overwrite"], "Expected --resume alone"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_training(mistake, command, tmp_path):
    make, message = MISTAKES[mistake]
    options = make(tmp_path / "data")
    out = [] if "--resume" in options else ["--out", tmp_path / "deep" / "run"]
    before = sorted(tmp_path.rglob("*"))
    code, stdout, err = command("train", *options, *out)
    assert message.format(data=tmp_path / "data") in err
    assert code == 2
    assert stdout == ""
    assert "Traceback" not in err
    assert ("Expected" in err and "Received" in err) or "Usage: stn train" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a file"),
        ("notes.txt", "which holds other files; choose another --out"),
        ("config.toml", "which holds other files; choose another --out"),
    ],
)
def test_out_that_is_not_free(content, message, command, tmp_path):
    out = tmp_path / "run"
    if content is None:
        out.write_text("mine", encoding="utf-8")
    else:
        out.mkdir()
        (out / content).write_text("mine", encoding="utf-8")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, _, err = command("train", "--out", out, "--overwrite")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("verb", ["evaluate", "predict", "report", "train --resume"])
def test_what_is_not_a_run(verb, command, tmp_path):
    more = ["x.png"] if verb == "predict" else []
    (tmp_path / "empty").mkdir()
    run = runs.Run(tmp_path / "future")
    runs.write_text(run.config_file, "")
    runs.write_json(run.environment_file, {"format": 7, "stn": "3.0"})
    for name, message in (
        ("none", "which does not exist"),
        ("empty", "which has no config.toml and environment.json"),
        ("future", "of version 7, written by stn 3.0"),
    ):
        code, out, err = command(*verb.split(), tmp_path / name, *more)
        assert (code, out) == (2, "")
        assert err.startswith("stn: Expected a run folder")
        assert message in err
    assert len(list((tmp_path / "future").iterdir())) == 2


def test_run_without_a_finished_epoch(command, trained, tmp_path):
    run = runs.Run(tmp_path / "run")
    run.path.mkdir()
    for file in ("config.toml", "environment.json", "dataset.json"):
        shutil.copy(trained.run.path / file, run.path)
    code, out, err = command("evaluate", run.path)
    assert (code, out) == (2, "")
    assert f"finished no epoch; go on with: stn train --resume {run.path}" in err
    assert command("report", run.path)[0] == 0


@pytest.mark.parametrize(
    ("paths", "code", "message"),
    [
        (["none.png"], 2, "Expected an image file. Received: '{d}/none.png', which is missing"),
        (["none.png", "*.bmp"], 2, "'{d}/*.bmp', which finds none"),
        (["empty"], 2, "Expected a folder with images. Received: '{d}/empty', which has no file"),
        (["junk.png"], 1, "'{d}/junk.png', which cannot be read as one (it is something else)"),
        (["none.png", "junk.png"], 1, "'{d}/none.png', which is missing"),
        (["none.png", "good.png"], 1, "'{d}/none.png', which is missing"),
        (["loop.png", "good.png"], 1, "(Too many levels of symbolic links)"),
    ],
)
def test_predict_what_is_not_an_image(paths, code, message, command, trained, tmp_path):
    (tmp_path / "junk.png").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    Image.new("L", (14, 14)).save(tmp_path / "good.png")
    given = [tmp_path / path for path in paths]
    found, out, err = command("predict", trained.run.path, *given, "--json")
    assert found == code
    assert (out == "") == (code == 2), "no results, or an empty array"
    assert out == "" or len(json.loads(out)) == ("good.png" in paths)
    assert message.format(d=tmp_path) in err
    assert "Traceback" not in err
    assert all(line.startswith("stn: ") for line in err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "Missing argument 'PATHS'"),
        (["{run}", "a.png", "--json", "--csv"], "Expected --json or --csv. Received: both"),
        (["{run}/config.toml", "a.png"], "/config.toml', another file"),
        (["{run}/none.keras", "a.png"], "/none.keras', which does not exist"),
        (["{run}", "a.png", "--save-straightened", "{run}/config.toml"], "a folder to write to"),
        (["{run}", ""], "Received: '', which is missing"),
    ],
)
def test_mistake_in_predicting(arguments, message, command, trained):
    filled = [argument.format(run=trained.run.path) for argument in arguments]
    code, out, err = command("predict", *filled)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["explode"], ["--explode"], ["data", "explode"]])
def test_unknown_verb_or_option(arguments, command):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "explode" in err
    assert "Usage: stn" in err


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(
    command, tmp_path, monkeypatch
):
    outs = []

    def train(config, out, **_):
        outs.append(out)
        assert out.is_dir()
        (out / "something").touch()
        if len(outs) < 3:  # before the first has ended
            command("train", "--data", "folder:" + "long/" * 60 + "x" * 200)
        raise UserError("no more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stn, "train", train)
    for _ in range(2):  # a second may pass within one try
        command("train", "--data", "folder:" + "long/" * 60 + "x" * 200)
    assert len(set(outs)) == len(outs) == 4
    assert all(len(out.name) < 100 for out in outs)


def test_a_folder_that_nothing_was_written_to_is_gone_again(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("train", "--data", "folder:nowhere")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "nowhere" in err


def test_a_full_disk_in_training_can_be_gone_on_from(command, shapes_config, tmp_path, monkeypatch):
    from stn.tool import checkpoints

    def train(config, out, **_):
        run, config = checkpoints.prepare(out, config, resume=False, overwrite=False)
        checkpoints.begin(run, config, {}, resume=False, overwrite=False)
        raise OSError(28, "No space left on device")

    (tmp_path / "my.toml").write_text(shapes_config.to_toml(), encoding="utf-8")
    monkeypatch.setattr(stn, "train", train)
    out = tmp_path / "run"
    code, _, err = command("train", "--config", tmp_path / "my.toml", "--out", out)
    assert code == 1
    assert f"The disk is full: {out}." in err
    assert f"go on with: stn train --resume {out}" in err


@pytest.mark.parametrize(
    ("error", "message", "exit_code"),
    [
        (OSError(28, "No space left on device", "/runs/a"), "The disk is full: /runs/a.", 1),
        (OSError(27, "File too large", "/runs/a"), "File too large: /runs/a. Nothing was left", 1),
        (
            PermissionError(13, "Permission denied", "/runs/a"),
            "No permission to write: /runs/a.",
            2,
        ),
        (OSError(30, "Read-only file system", "/runs/a"), "No permission to write: /runs/a.", 2),
        (NotADirectoryError(20, "Not a directory", "/runs/a"), "Not a directory: /runs/a", 2),
        (OSError(5, "Input/output error"), "Input/output error", 1),
        (KeyboardInterrupt(), "Interrupted", 130),
    ],
)
def test_trouble_with_the_machine(error, message, exit_code, command, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(stn, "train", fail)
    code, out, err = command("train", "--out", "runs/a")
    assert code == exit_code
    assert out == ""
    assert err.splitlines()[-1].startswith(f"stn: {message}")
    assert "Traceback" not in err


def test_what_was_interrupted_before_it_began_is_not_gone_on_with(
    command, monkeypatch, trained, tmp_path
):
    run = stn.Run(shutil.copytree(trained.run.path, tmp_path / "run"))

    def begin(*args, **options):
        os.utime(run.config_file)  # written anew
        interrupt()

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    for train, options, message in (
        (interrupt, ["--out", run.path, "--overwrite"], "Interrupted before anything was written"),
        (begin, ["--out", run.path, "--overwrite"], "Interrupted. Go on with: stn train --resume"),
        (interrupt, ["--resume", run.path], "Interrupted. Go on with: stn train --resume"),
    ):
        monkeypatch.setattr(stn, "train", train)
        code, _, err = command("train", *options)
        assert code == 130
        assert err.splitlines()[-1].startswith(f"stn: {message}")


def test_no_place_to_write(command, shapes):
    options = ["--data", "mnist", "--data-dir", shapes, "--batch-size", 8, "--epochs", 1]
    code, out, err = command("train", *options, "--out", "/proc/stn-run")
    assert (code, out) == (2, "")
    assert "/proc" in err
    assert "Traceback" not in err
    assert not os.path.lexists("/proc/stn-run")
