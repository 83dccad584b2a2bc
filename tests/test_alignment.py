"""Physical numbers and plain words for what a transformer did."""

import keras
import numpy as np
import pytest
from keras import ops

import stn
from stn.tool import alignment, evaluation, examples, tasks

SIZE = (20, 30)


def grid_of(transform, params, size=SIZE, output_size=(9, 12)):
    points = stn.grids.regular(output_size)[None]
    params = np.asarray(params, "float32")[None]
    return ops.convert_to_numpy(stn.get_transform(transform)(params, points, size=size))


def about(transform, params, **options):
    return alignment.describe(grid_of(transform, params, **options), SIZE)[0]


def test_each_number_is_what_was_put_in():
    found = about("similarity", [0.8, np.deg2rad(25), 0, 0])
    expected = {"angle": 25, "zoom_x": 1.25, "zoom_y": 1.25, "shear": 0, "right": 0, "down": 0}
    for key, value in expected.items():
        assert abs(found[key] - value) < 1e-4, key
    assert found["bend"] < 1e-5
    found = about("scaling", [0.5, 2, 0, 0])
    np.testing.assert_allclose([found["zoom_x"], found["zoom_y"]], [2, 0.5], rtol=1e-5)
    # A positive translation shows what lies further right: the picture moves left.
    found = about("translation", [0.2, -0.1])
    np.testing.assert_allclose([found["right"], found["down"]], [-0.1, 0.05], atol=1e-6)
    bend = 0.1 * np.random.default_rng(0).normal(size=32)
    assert 0.01 < about("tps", bend)["bend"] < 0.1


def test_words_agree_with_what_the_picture_shows():
    """A mark in the middle of the right half, seen where the words say."""
    image = np.zeros((1, 40, 40, 1), "float32")
    image[0, 20, 30] = 1
    cases = {
        "turned 90° left": ("rotation", [np.pi / 2], lambda x, y: y < 15 and 15 < x < 25),
        "turned 90° right": ("rotation", [-np.pi / 2], lambda x, y: y > 25 and 15 < x < 25),
        "zoomed 0.5x": ("attention", [2, 0, 0], lambda x, y: 22 < x < 28),
        "moved 25 % left": ("translation", [0.5, 0], lambda x, y: 18 < x < 23),
        "moved 20 % down": ("translation", [0, -0.4], lambda x, y: y > 26),
    }
    for words, (name, params, where) in cases.items():
        grid = grid_of(name, params, (40, 40), (40, 40))
        assert alignment.in_words(alignment.describe(grid, (40, 40))[0]) == words
        seen = ops.convert_to_numpy(stn.sample(image, grid, data_format="channels_last"))[0, ..., 0]
        y, x = np.unravel_index(seen.argmax(), seen.shape)
        assert where(x, y), words


@pytest.mark.parametrize(
    ("transform", "params", "words"),
    [
        ("affine", [1, 0, 0, 0, 1, 0], "left as it is"),
        ("affine", [1, 0, 0, 0, -1, 0], "mirrored"),
        ("affine", [0.5, 0, 0, 0, 1, 0], "zoomed 1.41x, stretched sideways 2x"),
        ("affine", [np.nan] * 6, "not a picture any more: the transformation is not finite"),
        ("attention", [0, 0, 0], "not a picture any more: the transformation is not finite"),
    ],
)
def test_words(transform, params, words):
    assert alignment.in_words(about(transform, params)) == words


def test_averages_and_their_sharpness():
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 1, (3, 6, 5, 1))
    labels = rng.integers(0, 3, 200)
    noise = rng.normal(0, 0.2, (200, 6, 5, 1))
    for spread in (0.0, 1.0):
        images = patterns[labels] + spread * noise
        averages = alignment.Congealing(4)  # and a class that has none
        for start in range(0, 200, 64):
            averages.add(images[start : start + 64], labels[start : start + 64])
        means, numbers = averages.means(), averages.numbers()
        expected = [images[labels == k].mean(axis=0) for k in range(3)]
        np.testing.assert_allclose(means[:3], expected, atol=1e-12)
        assert np.isnan(means[3]).all()
        variance = [images[labels == k].var(axis=0).mean() for k in range(3)]
        assert abs(numbers["within_class_variance"] - np.mean(variance)) < 1e-12
        energy = np.square(images).sum()
        within = sum(np.square(images[labels == k] - expected[k]).sum() for k in range(3))
        assert abs(numbers["sharpness"] - (1 - within / energy)) < 1e-12


def test_a_probe_takes_any_number_of_images(trained):
    """In parts, the last of which is filled up: each image is seen as if it were alone."""
    from stn import models

    model = evaluation.load_model(trained.run, None)
    images = np.random.default_rng(0).integers(0, 256, (12, *model.input_shape[1:]), "uint8")
    probe = examples.Probe(model, "affine", batch_size=5)
    parts = list(probe.parts(images))
    assert [len(probabilities) for probabilities, _ in parts] == [5, 5, 2]
    expected = keras.Model(model.input, models.looks(model)[0])(images)
    for part, values in enumerate(expected):
        found = np.concatenate([heads[0][part] for _, heads in parts])
        np.testing.assert_allclose(found, ops.convert_to_numpy(values), atol=1e-5)
    seen = probe.look(images)
    np.testing.assert_allclose(seen.probabilities, ops.convert_to_numpy(model(images)), atol=1e-5)
    (look,) = seen.looks
    np.testing.assert_allclose(look.params, ops.convert_to_numpy(expected[1]), atol=1e-5)
    assert len(look.straight) == len(look.outlines) == len(look.about) == 12


def test_survey_of_a_classifier(trained):
    model = evaluation.load_model(trained.run, None)
    names, test = tasks.load_split(trained.config, "test", channels=1)
    images = tasks.distorted_test(trained.config, test, [0.0])
    found = alignment.survey(
        examples.Probe(model, trained.config.transform), images, test.labels, len(names)
    )
    recorded = trained.run.metrics["congealing"]
    for key in ("inputs", "outputs"):
        assert found[key].numbers() == pytest.approx(recorded[key], rel=1e-4)
    assert all(len(values) == len(images) for values in found["quantities"].values())
    straight = model.get_layer("stn").output[0].shape[1:]
    assert found["outputs"].means().shape == (len(names), *straight)
    for file in (trained.run.averages_file, trained.run.theta_file):
        assert file.exists()
    page = trained.run.report_file.read_text(encoding="utf-8")
    assert "What it straightens" in page


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1)])
def test_an_axis_of_one_point_goes_as_the_other(height, width):
    points = stn.grids.regular((height, width))[None]
    assert alignment.in_words(alignment.describe(points, (height, width))[0]) == "left as it is"
    # Turned by a quarter and zoomed in, in pixels of a square.
    turned = 0.5 * np.stack([-points[..., 1], points[..., 0]], axis=-1)
    found = alignment.describe(turned, (8, 8))[0]
    angle, zoom = (0, 1) if height == width else (90, 2)
    np.testing.assert_allclose([found[k] for k in ("angle", "shear")], [angle, 0], atol=1e-6)
    np.testing.assert_allclose([found[k] for k in ("zoom_x", "zoom_y")], zoom, atol=1e-6)
