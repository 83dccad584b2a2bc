"""Sums of two digits: the pairs, several heads in models and pictures, and a run by the command."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import stn
from stn import models
from stn.tool import data, pictures, runs, tasks
from stn.tool.config import Config, UserError
from stn.tool.data import addition
from stn.tool.data.distortions import DISTORTIONS, Distortion


def numbered(count, size=6):
    """Images that are their label everywhere."""
    labels = np.random.default_rng(0).integers(0, 10, count).astype("int32")
    images = np.broadcast_to(labels[:, None, None, None], (count, size, size, 1))
    return data.Split(images.astype("uint8"), labels)


# --- pairs ---------------------------------------------------------------------------------------


def test_sums_are_of_digits_only():
    assert addition.sums("0123456789") == tuple(map(str, range(19)))
    with pytest.raises(UserError, match=r"classes 0, 1, 2 and so on, to add them.*a, b"):
        addition.sums("ab")


def test_pairs_are_labelled_by_their_sum_and_use_every_image_twice():
    split = numbered(40)
    pairs = addition.pair_all(split, 3)
    assert pairs.images.shape == (40, 6, 6, 2)
    first, second = pairs.images[:, 0, 0].T
    np.testing.assert_array_equal(first, split.labels)
    np.testing.assert_array_equal(np.sort(second), np.sort(split.labels))
    np.testing.assert_array_equal(pairs.labels, first.astype(int) + second)
    np.testing.assert_array_equal(addition.pair_all(split, 3).images, pairs.images)
    assert (addition.pair_all(split, 4).images != pairs.images).any()


def test_channels_that_are_images_of_their_own_are_distorted_by_themselves():
    images = np.random.default_rng(1).integers(0, 256, (4, 12, 12, 1), "uint8")
    both = np.concatenate([images, images], axis=-1)
    apart = dataclasses.replace(DISTORTIONS["RTS"], apart=True)
    found = apart(both, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    for channel in range(2):
        alone = DISTORTIONS["RTS"](images, rng)
        np.testing.assert_array_equal(found[..., channel : channel + 1], alone)
    assert (found[..., 0] != found[..., 1]).any()
    together = DISTORTIONS["RTS"](both, np.random.default_rng(2))
    np.testing.assert_array_equal(together[..., 0], together[..., 1])


def test_a_distortion_that_does_nothing_is_idle():
    assert Distortion(apart=True).idle
    assert not DISTORTIONS["T"].idle


@pytest.mark.parametrize("distort", ["none", "T"])
def test_training_pairs_are_drawn_anew_every_epoch(distort):
    from stn.tool import training

    config = Config(task="addition", data="mnist", distort=distort, batch_size=16, augment=0.0)
    distortion = tasks.distortion_of(config)
    batches = training.Batches(config, numbered(40), distortion)
    drawn = []
    for epoch in (1, 2, 1):
        batches.epoch = epoch
        images, labels = zip(*(batches[i] for i in range(len(batches))), strict=True)
        images, labels = np.concatenate(images), np.concatenate(labels)
        assert images.shape == (32, *distortion.output_size((6, 6)), 2)
        np.testing.assert_array_equal(images.max(axis=(1, 2)).astype(int).sum(axis=-1), labels)
        drawn.append((images, labels))
    np.testing.assert_array_equal(drawn[0][0], drawn[2][0])
    pairs = [{tuple(pair) for pair in images.max(axis=(1, 2))} for images, _ in drawn[:2]]
    assert pairs[0] != pairs[1]


def test_pairs_are_of_grey_images():
    split = data.Split(np.zeros((2, 4, 4, 3), "uint8"), np.zeros(2, "int32"))
    with pytest.raises(UserError, match=r"grey images to add.*3 channels; use --color grey"):
        tasks.for_task(Config(task="addition"), "01", split, 2)


# --- the adder -----------------------------------------------------------------------------------


def test_sum_is_the_convolution_of_what_all_heads_read():
    import keras

    layer = models.Sum(4)
    features = np.random.default_rng(0).normal(size=(5, 6, 3)).astype("float32")
    found = keras.ops.convert_to_numpy(layer(features))
    kernel, bias = layer.get_weights()
    for row, own in zip(found, features.reshape(5, 3, 2, 3), strict=True):
        logits = (own @ kernel + bias).sum(axis=0)
        first, second = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(row, np.convolve(first, second), rtol=1e-4)


def test_every_channel_is_seen_by_the_same_network():
    import keras

    images = np.random.default_rng(0).random((3, 9, 7, 4)).astype("float32")
    network = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.Flatten()])
    found = keras.ops.convert_to_numpy(models.Apart(network)(images))
    for channel in range(4):
        alone = keras.ops.convert_to_numpy(network(images[..., channel : channel + 1]))
        np.testing.assert_allclose(found[:, channel], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", ["affine", "none"])
def test_adder_is_saved_whole(transform, tmp_path):
    import keras

    options = {"input_shape": (12, 12, 2), "num_classes": 19, "heads": 2, "output_size": 8}
    model = models.classifier("adder", transform=transform, **options)
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 2), "uint8")
    found = model.predict_on_batch(images)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(again.predict_on_batch(images), found)


@pytest.mark.parametrize(("shape", "classes"), [((12, 12, 1), 19), ((12, 12, 2), 10)])
def test_adder_is_for_pairs_and_sums(shape, classes):
    with pytest.raises(ValueError, match="Expected pairs of grey images and an odd number of sums"):
        models.classifier("adder", input_shape=shape, num_classes=classes)


# --- several heads -------------------------------------------------------------------------------


def test_classifier_sees_what_every_head_gives():
    import keras

    options = {"input_shape": (12, 12, 2), "num_classes": 5, "output_size": 8}
    model = models.classifier("template", heads=3, initialization="tiles", **options)
    assert model.get_layer("body").input_shape == (None, 8, 8, 6)
    looks = models.looks(model)
    assert [[tuple(x.shape[1:]) for x in look] for look in looks] == 3 * [
        [(8, 8, 2), (6,), (8, 8, 2)]
    ]
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 2), "uint8")
    seen = keras.Model(model.input, [image for image, _, _ in looks]).predict_on_batch(images)
    joined = keras.Model(model.input, model.get_layer("heads").output).predict_on_batch(images)
    np.testing.assert_array_equal(np.concatenate(seen, axis=-1), joined)
    assert len(models.looks(models.classifier("template", **options))) == 1


def test_two_channels_are_two_colors():
    images = np.zeros((1, 8, 8, 2), "uint8")
    images[:, :4, :, 0] = images[:, :, :4, 1] = 255
    tile = pictures._tiles("images", images)[0]
    first, second, both, none = tile[0, -1], tile[-1, 0], tile[0, 0], tile[-1, -1]
    assert (first.tolist(), second.tolist()) == ([76, 191, 255], [255, 191, 76])
    assert (both.tolist(), none.tolist()) == ([255, 255, 255], [0, 0, 0])
    np.testing.assert_array_equal(pictures._tiles("images", images / 255.0)[0], tile)


def shows(picture, color):
    return (np.abs(np.asarray(picture.convert("RGB")).astype(int) - color).max(-1) < 12).sum()


def test_every_head_has_a_color_of_its_own():
    images = np.zeros((2, 8, 8, 1), "uint8")
    box = lambda a, b: np.array([[[a, a], [b, a], [b, b], [a, b]]] * 2, "float32")  # noqa: E731
    one = pictures.draw_frame(images, images, box(0, 4), title="t")
    two = pictures.draw_frame(images, images, box(0, 4), title="t", more=[(images, box(3, 7), ())])
    assert shows(one, pictures.OTHERS[0]) == 0
    assert shows(two, pictures.OTHERS[0]) > 200 < shows(two, pictures.OUTLINE)
    assert two.height > one.height
    assert two.width == one.width
    example = pictures.draw_example(images[0], images[0], box(0, 4)[0])
    more = [(images[0], box(3, 7)[0], ())]
    wider = pictures.draw_example(images[0], images[0], box(0, 4)[0], more=more)
    assert shows(example, pictures.OTHERS[0]) == 0 < shows(wider, pictures.OTHERS[0])
    assert (wider.width > example.width, wider.height) == (True, example.height)
    with pytest.raises(ValueError, match=r"one of outputs per input, 2\. Received: 1"):
        pictures.draw_frame(images, images, None, title="t", more=[(images[:1], None, ())])


# --- a run, by the command -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def added(shapes, tmp_path_factory):
    config = Config(
        task="addition",
        data="mnist",
        data_dir=str(shapes),
        distort="RTS",
        model="adder",
        heads=2,
        validation=0.2,
        epochs=2,
        batch_size=16,
        seed=7,
    )
    return stn.train(config, tmp_path_factory.mktemp("runs") / "added")


@pytest.mark.once
def test_run_tells_the_sums_apart(added):
    names = [str(total) for total in range(19)]
    about, metrics = added.dataset, added.metrics
    assert (about["class_names"], metrics["test"]["class_names"]) == (names, names)
    assert (about["image_shape"], about["input_shape"]) == ([14, 14, 1], [21, 21, 2])
    counts = [record["count"] for record in metrics["test"]["per_class"].values()]
    assert sum(counts) == metrics["test"]["count"] == 20
    assert sum(counts[7:]) == 0  # digits up to 3
    assert (metrics["congealing"], metrics["alignment"]) == ({}, None)
    assert not added.averages_file.exists()
    assert added.theta_file.exists()
    for record in added.history:
        assert record["sampled_area"] > 0


@pytest.mark.once
def test_evaluate_finds_the_same_pairs(added, command):
    code, out, err = command("evaluate", added.path, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["confusion"] == added.metrics["test"]["confusion"]
    assert found["loss"] == pytest.approx(added.metrics["test"]["loss"], rel=1e-4)


@pytest.mark.once
def test_report_and_wall_show_both_heads(added):
    page = added.report_file.read_text(encoding="utf-8")
    assert "to add two digits" in page
    assert "the first in light blue, the second in amber" in page
    assert "This layer has 2 heads" in page
    assert "Straightened</a>" in page
    with np.load(added.wall_file) as wall:
        assert wall["outputs"].shape == wall["outputs_2"].shape
        assert wall["outlines_2"].shape == wall["outlines"].shape
        assert all(text.startswith("1: ") and "; 2: " in text for text in wall["words"].tolist())
    with Image.open(added.frame_file(2)) as picture:
        assert shows(picture, pictures.OTHERS[0]) > 200


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments", [("evaluate", "--sweep", "rotation"), ("predict", "a.png"), ("inspect", "a.png")]
)
def test_what_takes_single_images_says_so(added, command, arguments):
    verb, *rest = arguments
    code, out, err = command(verb, added.path, *rest)
    assert (code, out) == (2, "")
    assert "Expected a run with task 'classification'" in " ".join(err.split())


@pytest.mark.slow
def test_run_goes_on_where_it_stopped(added, tmp_path):
    from test_training import PowerCut, assert_same_training, cut_at

    again = runs.Run(tmp_path / "again")
    with pytest.raises(PowerCut):
        stn.train(added.config, again.path, progress=cut_at(2, step=2))
    stn.train(added.config, again.path, resume=True)
    assert_same_training(again, added)
