"""Scores, backgrounds, and what a run is worth on its test images."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import stn
from conftest import Brightness, draw_shapes
from stn.tool import runs, tasks
from stn.tool.config import UserError
from stn.tool.evaluation import predict_probabilities, score

# --- scores --------------------------------------------------------------------------------------


def test_score_by_hand():
    probabilities = np.array(
        [[0.8, 0.1, 0.1, 0], [0.3, 0.6, 0.1, 0], [0.2, 0.5, 0.3, 0], [0.1, 0.9, 0, 0]], "float32"
    )
    labels = np.array([0, 0, 2, 1], "int32")
    found = score(probabilities, labels, ["a", "b", "c", "d"])
    assert found["count"] == 4
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-np.log([0.8, 0.3, 0.3, 0.9]).mean())
    assert found["per_class"] == {
        "a": {"accuracy": 0.5, "count": 2},
        "b": {"accuracy": 1.0, "count": 1},
        "c": {"accuracy": 0.0, "count": 1},
        "d": {"accuracy": None, "count": 0},
    }
    assert found["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert json.loads(json.dumps(found)) == found


def test_score_with_smoothed_labels_is_the_loss_of_training():
    import keras

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.2), 40).astype("float32")
    labels = probabilities.argmax(-1)
    labels[:5] = 3
    found = score(probabilities, labels, "abcde", 0.1)
    smooth = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    expected = float(smooth(np.eye(5)[labels], probabilities))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    plain = score(probabilities, labels, "abcde")
    assert found["loss"] != pytest.approx(plain["loss"], rel=0.05)
    assert {**found, "loss": 0} == {**plain, "loss": 0}


def test_score_of_certain_mistakes_is_finite():
    assert score(np.array([[0.0, 1.0]]), np.array([0]), "ab")["loss"] == pytest.approx(16.118, 1e-3)


def test_score_does_not_hide_nan():
    assert np.isnan(score(np.array([[np.nan, np.nan]]), np.array([0]), "ab")["loss"])


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (4, 4), (7, 4), (9, 1024)])
def test_probabilities_of_any_number_of_images(count, batch_size):
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 1), "uint8")
    model = Brightness()
    found = predict_probabilities(model, images, batch_size=batch_size)
    np.testing.assert_allclose(found, Brightness().predict_on_batch(images))
    assert len({len(batch) for batch in model.batches}) == 1, "one batch size compiles once"


# --- backgrounds ---------------------------------------------------------------------------------


def test_background_of_images(digit):
    images = np.stack([digit] * 10 + [255 - digit] * 10)[..., None]
    found = [tasks.background_of(images[part]) for part in (slice(10), slice(10, 20), slice(20))]
    assert [kind for _, kind in found] == ["dark", "light", "mixed"]
    assert [None if color is None else color.tolist() for color, _ in found] == [[0], [255], None]


def test_the_color_of_the_background():
    images = np.full((20, 8, 8, 3), (250, 240, 10), "uint8")
    images[:, 2:6, 2:6] = 0
    color, kind = tasks.background_of(images)
    assert color.tolist() == [250, 240, 10] and kind == "light"


@pytest.mark.parametrize(
    "colors",
    [
        [(level, level, level) for level in range(0, 120, 6)],  # all dark, none the same
        [(250, 0, 0), (0, 250, 0), (0, 0, 250)],
    ],
)
def test_different_backgrounds_are_none(colors):
    images = np.stack([np.full((8, 8, 3), color, "uint8") for color in colors])
    assert tasks.background_of(images) == (None, "mixed")


# --- a trained run -------------------------------------------------------------------------------


def test_evaluate_gives_the_metrics_of_the_run(trained):
    found = stn.evaluate(trained.run)
    assert found == trained.run.metrics["test"]
    assert stn.evaluate(str(trained.run.path), data_dir=trained.config.data_dir) == found


def test_evaluate_with_another_distortion(trained):
    found = stn.evaluate(trained.run, distort="RTS")
    assert found == trained.run.metrics["test"]
    with pytest.raises(UserError, match=r"shape \(21, 21, 1\), as in training.*\(30, 30, 1\)"):
        stn.evaluate(trained.run, distort="TC")
    with pytest.raises(UserError, match="Expected distort to be"):
        stn.evaluate(trained.run, distort="X")


def test_evaluate_reads_test_files_only(trained, shapes, tmp_path):
    for file in shapes.glob("t10k*"):
        shutil.copy(file, tmp_path)
    assert stn.evaluate(trained.run, data_dir=tmp_path) == trained.run.metrics["test"]


def test_test_images_are_not_those_of_training(tmp_path, monkeypatch):
    """Which images of a folder are held out depends on what else is there."""
    images, labels = draw_shapes(12, seed=0)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = tmp_path / "mine" / f"class {label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    monkeypatch.chdir(tmp_path)
    config = stn.Config(data="folder:mine", model="template", epochs=1, batch_size=8)
    run = stn.train(config, "run")
    found = stn.evaluate(run)
    assert found == run.metrics["test"] == stn.evaluate(run, data="folder:mine")
    shutil.copytree("mine", "elsewhere")

    (tmp_path / "mine" / "class 0" / "0.png").unlink()
    Image.fromarray(images[0]).save(tmp_path / "mine" / "class 0" / "another.png")
    refused = "Expected the images the run was trained with"
    for again in (
        lambda: stn.evaluate(run),
        lambda: stn.evaluate(run, data="folder:mine"),
        lambda: stn.train(config, "run", resume=True),
    ):
        with pytest.raises(UserError, match=refused):
            again()
    assert stn.evaluate(run, data="folder:elsewhere") == found
    stn.train(config.replace(data="folder:elsewhere"), "run", resume=True)
    assert run.config.data == f"folder:{tmp_path / 'elsewhere'}"
    assert stn.evaluate(run) == found == run.metrics["test"]


def test_some_of_the_classes_will_do(trained, tmp_path):
    images, labels = draw_shapes(5, seed=3)  # of the digits 0 to 3
    for image, label in zip(images[5:], labels[5:], strict=True):
        folder = tmp_path / "more" / "test" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{len(list(folder.iterdir()))}.png")
    found = stn.evaluate(trained.run, data=f"folder:{tmp_path / 'more'}")
    assert [one["count"] for one in found["per_class"].values()] == [0, 5, 5, 5, *[0] * 6]
    assert [sum(row) for row in found["confusion"]] == [0, 5, 5, 5, *[0] * 6]


def test_evaluate_refuses_other_classes(trained):
    with pytest.raises(UserError, match=r"10 classes \(0, 1, .*glyphs with 62 classes"):
        stn.evaluate(trained.run, data="glyphs")


def test_damaged_and_missing_models(trained, tmp_path):
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    run.model_file.write_bytes(b"PK not a model")
    with pytest.raises(UserError, match=r"Expected a readable model.*model\.keras"):
        stn.evaluate(run)
    run.model_file.unlink()
    with pytest.raises(UserError, match="finished no epoch; go on with: stn train --resume"):
        stn.evaluate(run)
