"""Scores, and what a model is shown."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import stn
from stn.tool import evaluation, runs
from stn.tool.config import Config, UserError
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


def test_score_of_certain_mistakes_is_finite():
    assert score(np.array([[0.0, 1.0]]), np.array([0]), "ab")["loss"] == pytest.approx(16.118, 1e-3)


def test_score_does_not_hide_nan():
    assert np.isnan(score(np.array([[np.nan, np.nan]]), np.array([0]), "ab")["loss"])


class Brightness:
    """A model of two classes: the probability of the second is the brightness of the image."""

    def __init__(self):
        self.batches = []

    def predict_on_batch(self, images):
        self.batches.append(images)
        light = images.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - light, light], -1)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (4, 4), (7, 4), (9, 1024)])
def test_probabilities_of_any_number_of_images(count, batch_size):
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 1), "uint8")
    model = Brightness()
    found = predict_probabilities(model, images, batch_size=batch_size)
    np.testing.assert_allclose(found, Brightness().predict_on_batch(images))
    assert len({len(batch) for batch in model.batches}) == 1, "one batch size compiles once"


# --- what a model is shown -----------------------------------------------------------------------


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Save arrays as image files, let a run of 14x14 images on 21x21 predict; what it was shown."""

    def show(*arrays, canvas=21, channels=1):
        run = runs.Run(tmp_path / "run")
        runs.write_text(run.config_file, Config().to_toml())
        runs.write_json(run.environment_file, {"format": runs.FORMAT})
        about = {"class_names": ["dark", "light"], "image_shape": [14, 14, channels]}
        runs.write_json(run.dataset_file, about | {"input_shape": [canvas, canvas, channels]})
        model = Brightness()
        monkeypatch.setattr(evaluation, "load_model", lambda run, backend: model)
        paths = []
        for i, array in enumerate(arrays):
            paths.append(tmp_path / f"{i}.png")
            Image.fromarray(array).save(paths[-1])
        found = evaluation.predict(run, paths)
        assert [record["image"] for record in found] == [str(path) for path in paths]
        assert all(set(record) == {"image", "class", "probability"} for record in found)
        return np.concatenate(model.batches)

    return show


@pytest.fixture
def digit():
    image = np.zeros((14, 14), "uint8")
    image[2:12, 6:8] = 255
    image[3, 5] = 100
    return image


def test_grey_image_is_put_in_the_middle_of_the_canvas(shown, digit):
    (seen,) = shown(digit)
    expected = np.zeros((21, 21, 1), "uint8")
    expected[3:17, 3:17, 0] = digit
    np.testing.assert_array_equal(seen, expected)


def test_inverted_colored_and_transparent_copies_look_the_same(shown, digit):
    transparent = np.zeros((14, 14, 4), "uint8")
    transparent[..., :3], transparent[..., 3] = 255, digit
    color = np.repeat(digit[..., None], 3, axis=2)
    seen = shown(digit, 255 - digit, color, 255 - color, transparent)
    for other in seen[1:]:
        np.testing.assert_array_equal(other, seen[0])


def test_larger_image_is_shrunk(shown, digit):
    seen = shown(digit, np.kron(digit, np.ones((4, 4), "uint8")))
    np.testing.assert_allclose(seen[1].astype(int), seen[0].astype(int), atol=60)
    assert seen[1].mean() == pytest.approx(seen[0].mean(), rel=0.15)


@pytest.mark.parametrize("turned", [False, True])
def test_aspect_ratio_is_kept(shown, turned):
    tall = np.zeros((56, 28), "uint8")
    tall[8:48, 10:18] = 255
    (seen,) = shown(tall.T if turned else tall)
    rows, columns = (seen[..., 0].max(axis=axis) > 127 for axis in (1, 0))
    assert (rows.sum(), columns.sum()) == ((2, 10) if turned else (10, 2))


def test_image_of_the_size_of_the_canvas_is_taken_as_it_is(shown):
    image = np.zeros((21, 21), "uint8")
    image[5, 18] = 255
    (seen,) = shown(image)
    np.testing.assert_array_equal(seen[..., 0], image)


def test_one_pixel_and_one_line(shown):
    seen = shown(np.zeros((1, 1), "uint8"), np.zeros((1, 50), "uint8"))
    assert seen.shape == (2, 21, 21, 1)
    assert seen.max() == 0


def test_color_model_sees_color(shown):
    red = np.zeros((14, 14, 3), "uint8")
    red[4:10, 4:10, 0] = 255
    grey = np.zeros((14, 14), "uint8")
    seen = shown(red, grey, canvas=14, channels=3)
    np.testing.assert_array_equal(seen[0], red)
    assert seen[1].shape == (14, 14, 3)


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


def test_no_images_have_no_classes(trained):
    assert stn.predict(trained.run, []) == []
