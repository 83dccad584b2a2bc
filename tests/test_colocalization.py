"""Co-localization: boxes, windows and loss against plain NumPy, and a run by the command."""

import json

import numpy as np
import pytest
from PIL import Image

import stn
from stn.tool import colocalization, comparison, reproduction, runs
from stn.tool.config import Config, Stream, UserError
from stn.tool.data.scenes import Scenes, draw_scenes, iou


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def numpy(tensor):
    import keras

    return keras.ops.convert_to_numpy(tensor)


# --- the images ----------------------------------------------------------------------------------


def test_overlap_is_that_of_pixels_counted_one_by_one(rng):
    corners = np.sort(rng.integers(0, 12, (2, 40, 2, 2)), axis=2)
    corners[:, :, 1] += 1
    boxes = corners.reshape(2, 40, 4)
    expected = []
    for pair in zip(*boxes, strict=True):
        masks = np.zeros((2, 13, 13), bool)
        for mask, (left, top, right, bottom) in zip(masks, pair, strict=True):
            mask[top:bottom, left:right] = True
        expected.append(np.logical_and(*masks).sum() / np.logical_or(*masks).sum())
    assert min(expected) == 0 < max(expected)
    np.testing.assert_allclose(iou(*boxes), expected)


def test_objects_lie_in_their_boxes_among_clutter(rng):
    objects = rng.integers(1, 256, (30, 10, 8, 1), "uint8")
    scenes = draw_scenes(objects, objects, 0, rng)
    assert scenes.images.shape == (30, 30, 24, 1)
    for image, original, (left, top, right, bottom) in zip(
        scenes.images, objects, scenes.boxes, strict=True
    ):
        np.testing.assert_array_equal(image[top:bottom, left:right], original)
        assert (image > 0).sum() == 80
    assert len(np.unique(scenes.boxes, axis=0)) > 20
    assert scenes.boxes.min() >= 0
    assert (scenes.boxes.max(axis=0) <= (16, 20, 24, 30)).all()
    cluttered = draw_scenes(objects, objects, 16, np.random.default_rng(5))
    plain = draw_scenes(objects, objects, 0, np.random.default_rng(5))
    np.testing.assert_array_equal(cluttered.boxes, plain.boxes)
    assert (cluttered.images >= plain.images).all()
    assert ((cluttered.images > plain.images).sum(axis=(1, 2, 3)) > 0).all()


def test_windows_show_what_is_in_their_boxes(rng):
    import keras

    objects = rng.integers(1, 256, (6, 10, 8, 1), "uint8")
    scenes = draw_scenes(objects, objects, 0, rng)
    centers = scenes.normalize(scenes.boxes).reshape(-1, 2, 2).mean(axis=1)
    boxes = scenes.boxes_around(centers, 1 / 3)
    np.testing.assert_allclose(boxes, scenes.boxes, atol=1e-9)
    # As the transformer cuts them out, as training does, and as the pictures do.
    window = colocalization.Window(1 / 3)
    params = centers.astype("float32")
    images = scenes.images.astype("float32")
    cut = stn.warp(images, params, window, output_size=(10, 8), data_format="channels_last")
    np.testing.assert_allclose(numpy(cut), objects, atol=1e-2)
    locator = colocalization.build_locator((30, 24, 1), (10, 8))
    inputs = keras.Input((10, 8, 1))
    eyes = keras.Model(inputs, keras.layers.Flatten()(inputs))
    triplets = colocalization._Triplets(locator, eyes)
    seen = numpy(triplets([scenes.images, params, np.full((6, 1), 1.0, "float32")]))
    np.testing.assert_allclose(255 * seen[:, 1].reshape(6, 10, 8, 1), objects, atol=1e-2)
    affine = scenes.params(scenes.boxes)
    drawn = colocalization.distortions.warp_images(scenes.images, affine, (10, 8))
    np.testing.assert_array_equal(drawn, objects)


def test_window_begins_with_the_canvas_and_stays_inside():
    zooms = [colocalization.zoom_at(step, 5) for step in range(51)]
    assert zooms[0] == 1
    assert zooms[30:] == [pytest.approx(1 / 3)] * 21
    assert sorted(zooms, reverse=True) == zooms
    window = colocalization.Window(0.5)
    corners = np.array([[[-1.0, -1.0], [1.0, 1.0]]], "float32")
    seen = numpy(window(np.array([[5.0, -0.25]], "float32"), corners))
    np.testing.assert_allclose(seen, [[[0, -0.75], [1, 0.25]]], atol=1e-6)
    scenes = Scenes(np.zeros((1, 8, 16, 1), "uint8"), np.zeros((1, 4)))
    box = scenes.boxes_around(np.array([[5.0, -0.25]]), 0.5)
    np.testing.assert_allclose(box, [[8, 1, 16, 5]])


# --- the networks --------------------------------------------------------------------------------


def test_centroid_is_the_mean_point_of_the_softmax(rng):
    maps = rng.normal(0, 2, (3, 4, 6, 1)).astype("float32")
    expected = []
    for heat in np.exp(maps[..., 0].astype("float64")):
        x = sum(heat[:, j].sum() * ((2 * j + 1) / 6 - 1) for j in range(6)) / heat.sum()
        y = sum(heat[i].sum() * ((2 * i + 1) / 4 - 1) for i in range(4)) / heat.sum()
        expected.append([x, y])
    found = numpy(colocalization.Centroid()(maps))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_encodings_that_have_nothing_in_common_are_one_apart(rng):
    classifier, encoder = colocalization.build_encoder((28, 28, 1), 11)
    windows = rng.uniform(size=(5, 28, 28, 1)).astype("float32")
    codes = numpy(encoder(windows, training=True))  # no dropout, even so
    np.testing.assert_array_equal(codes, numpy(encoder(windows)))
    logits = numpy(classifier(windows))
    hidden, second, last = np.split(codes, [128, 192], axis=-1)
    scaled = logits / np.sqrt((logits**2).sum(axis=-1, keepdims=True) + 0.3) / np.sqrt(6)
    np.testing.assert_allclose(last, scaled, atol=1e-5)
    for part in (hidden, second, last):
        lengths = (part**2).sum(axis=-1)  # three of a sixth each; together twice that is 1
        assert (lengths <= 1 / 6 + 1e-6).all()


def test_locator_begins_by_its_own_word_and_is_saved_with_it(tmp_path, rng):
    import keras

    locator = colocalization.build_locator((42, 42, 1), (14, 14))
    images = rng.integers(0, 256, (3, 42, 42, 1), "uint8")
    layer = locator.get_layer(stn.models.TRANSFORMER)
    pointed = numpy(layer.localization(images.astype("float32") / 255))
    centers = colocalization.locate(locator, images)
    np.testing.assert_allclose(centers, pointed, atol=1e-6)
    locator.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(colocalization.locate(again, images), centers)


def test_loss_is_the_hinge_over_all_pairs(rng):
    encodings = rng.normal(0, 0.4, (7, 2, 5)).astype("float32")
    found, elsewhere = encodings[:, 0].astype("float64"), encodings[:, 1].astype("float64")
    expected, hinges = np.zeros(7), []
    for n in range(7):
        for m in range(7):
            if m != n:
                alike = ((found[n] - found[m]) ** 2).sum()
                random = ((found[n] - elsewhere[n]) ** 2).sum()
                hinges.append(max(0.0, alike - random + colocalization.MARGIN))
                expected[n] += hinges[-1] / 6
    assert 0 < hinges.count(0.0) < 42
    loss = numpy(colocalization.triplet_loss(encodings))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_steps_move_canvases_and_look_beside():
    images = np.zeros((5, 21, 28, 1), "uint8")
    images[:, 10, 14] = np.arange(1, 6)[:, None]
    config = Config(recipe="colocalization", batch_size=5, epochs=3)
    steps = colocalization._Steps(config, images)
    (moved, points, zoom), _ = steps[2]
    rows, columns = np.nonzero(moved.max(axis=(0, 3)))
    assert moved.sum() == images.sum()
    assert (np.abs(rows - 10).max() <= 3, np.abs(columns - 14).max() <= 4) == (True, True)
    assert len({*rows}) > 1 < len({*columns})
    assert np.abs(points).max() <= 2 / 3
    np.testing.assert_allclose(zoom, np.full((5, 1), colocalization.zoom_at(2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(steps[2][0][0], moved)
    steps.epoch = 2
    assert (steps[2][0][1] != points).any()


# --- a run, by the command -----------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colocalization, "ENCODER_STEPS", 30)
        patch.setattr(colocalization, "ENCODER_BATCH", 64)
        yield


OPTIONS = ("--object-class", "3", "--batch-size", "20", "--epochs", "3", "--seed", "7")


@pytest.fixture(scope="module")
def found(shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "found"
    config = Config(
        recipe="colocalization",
        data_dir=str(shapes),
        object_class="3",
        batch_size=20,
        epochs=3,
        seed=7,
    )
    return stn.train(config, path)


def test_run_tells_where_the_objects_are(found):
    metrics, history = found.metrics, found.history
    assert metrics["count"] == len(metrics["images"]) == 20
    overlaps = [one["iou"] for one in metrics["images"]]
    boxes = [[one[key] for one in metrics["images"]] for key in ("true", "found")]
    np.testing.assert_allclose(iou(*boxes), overlaps, atol=2e-3)
    assert metrics["mean_iou"] == pytest.approx(np.mean(overlaps), abs=1e-3)
    assert metrics["accuracy"] == np.mean(np.array(overlaps) > 0.5)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert history[-1]["zoom"] == pytest.approx(1 / 3)
    assert history[-1]["mean_iou"] == pytest.approx(metrics["mean_iou"], abs=1e-4)
    assert found.config.distort == "TC"
    for file in (found.environment_file, found.model_file, found.curves_file, found.webp_file):
        assert file.stat().st_size
    with Image.open(found.film_file) as film:
        assert film.n_frames == 4


def test_report_is_about_boxes(found):
    page = found.report_file.read_text(encoding="utf-8")
    assert "find what 20 canvases of the mnist data have in common" in page
    assert "Mean overlap" in page
    assert "Test accuracy" not in page
    assert 'id="classes"' not in page


def test_comparison_says_how_many_were_found(found):
    numbers = comparison.summarize(found)
    assert numbers["objects_found"] == found.metrics["accuracy"]
    assert numbers["accuracy"] is None  # that of a class
    assert "98.0%" in comparison.write("objects_found", 0.98)


def test_result_is_the_share_found_and_the_overlap(found):
    one = reproduction.result(found)
    metrics = found.metrics
    assert one["error"] == pytest.approx(100 * (1 - metrics["accuracy"]))
    assert one["mean_iou"] == pytest.approx(metrics["mean_iou"], abs=1e-4)
    assert one["train"] == one["test"] == 20
    words = "stn train --recipe colocalization --object-class 3 --batch-size 20 --epochs 3 --seed 7"
    assert sorted(one["command"].split()) == sorted(words.split())


def test_saved_model_points_at_what_was_found(found):
    import keras

    model = keras.saving.load_model(found.model_file, compile=False)
    config = found.config
    names, digits = colocalization.load_split(config, "train")
    chosen = colocalization._chosen(config, names, digits)
    rng = np.random.default_rng((config.seed, Stream.SCENES))
    scenes = draw_scenes(digits.images[chosen], digits.images, 16, rng)
    boxes = scenes.boxes_around(colocalization.locate(model, scenes.images), 1 / 3)
    expected = [one["found"] for one in found.metrics["images"]]
    np.testing.assert_allclose(boxes, expected, atol=0.01)


@pytest.mark.once
def test_run_goes_on_where_it_stopped(found, tmp_path):
    from test_training import PowerCut, assert_same_training, cut_at

    again = runs.Run(tmp_path / "again")
    with pytest.raises(PowerCut):
        stn.train(found.config, again.path, progress=cut_at(2, step=4))
    about = again.dataset
    runs.write_json(again.dataset_file, about | {"class_names": list("abcdefghij")})
    with pytest.raises(UserError, match="Expected the data the run was begun with, class_names="):
        stn.train(found.config, again.path, resume=True)
    runs.write_json(again.dataset_file, about)
    stn.train(found.config, again.path, resume=True)
    assert_same_training(again, found)
    assert again.metrics["images"] == found.metrics["images"]


@pytest.mark.slow
def test_command_finds_and_prints(command, shapes, tmp_path):
    out_folder = tmp_path / "run"
    arguments = ("--recipe", "colocalization", "--data-dir", shapes, *OPTIONS, "--distort", "T")
    code, out, err = command("train", *arguments, "--out", out_folder, "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["run"] == str(out_folder)
    assert printed["object_class"] == "3"
    assert "mean_iou" in err
    code, out, err = command("train", "--resume", out_folder)
    assert (code, out.strip()) == (0, str(out_folder))
    assert "mean overlap" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--object-class", "z"), "object_class to be one of 0, 1"),
        (("--object-class", "3", "--batch-size", "21"), "batch_size to be at most 20"),
        (("--batch-size", "1"), "two or more canvases"),
        (("--distort", "R"), "Expected distort 'T' or 'TC'"),
        (("--transform", "affine"), "Expected transform 'attention'"),
        (("--heads", "3"), "Expected heads to be 1, as it has no part in task 'colocalization'"),
        (("--augment", "0.5"), "Expected augment to be 0.0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    command, shapes, tmp_path, arguments, said
):
    begin = ("train", "--recipe", "colocalization", "--data-dir", shapes)
    code, out, err = command(*begin, *arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [("evaluate",), ("evaluate", "--sweep", "scale"), ("predict", "a.png"), ("inspect", "a.png")],
)
def test_what_has_no_meaning_says_so(found, command, arguments):
    verb, *rest = arguments
    code, out, err = command(verb, found.path, *rest)
    assert (code, out) == (2, "")
    assert "with task 'colocalization'" in " ".join(err.split())
