"""Training, its errors, and going on exactly where it stopped."""

import contextlib
import http.client
import json
import math
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

import stn
from conftest import draw_shapes
from stn.tool import checkpoints, data, runs
from stn.tool.config import UserError
from stn.tool.data import distortions
from stn.tool.progress import Progress


class Hooks(Progress):
    """Calls `before(epoch)`, `step(epoch, step)` and `after(epoch)` while a training goes on."""

    def __init__(self, before=None, step=None, after=None):
        super().__init__(quiet=True)
        nothing = lambda *a: None  # noqa: E731
        self.before, self.step_done, self.after = before or nothing, step or nothing, after

    @contextlib.contextmanager
    def epoch(self, epoch, epochs, steps):
        self.before(epoch)
        with super().epoch(epoch, epochs, steps) as bar:
            original = bar.update

            def update(done, *numbers):
                original(done, *numbers)
                self.step_done(epoch, done)

            bar.update = update
            yield bar

    def epoch_done(self, record, *, best):
        if self.after:
            self.after(record["epoch"])


class PowerCut(Exception):
    pass


def cut_at(epoch, step=None):
    def hook(at, done):
        if at == epoch and done == (step or done):
            raise PowerCut

    return Hooks(step=hook)


def lasting(history):
    """The records, without how long it took."""
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in record.items() if k not in timing} for record in history]


def checkpoint(run):
    """Every array there is to a training: weights, optimizer, random state, best weights."""
    with np.load(run.checkpoint_file) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    state = json.loads(str(found.pop("state")))
    return state, found


def assert_same_training(run, expected):
    assert lasting(run.history) == lasting(expected.history)
    (_, ours), (_, theirs) = checkpoint(run), checkpoint(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def weights(run):
    import keras

    assert stn.SpatialTransformer
    return keras.saving.load_model(run.model_file).get_weights()


# --- a finished run ------------------------------------------------------------------------------


def test_run_has_every_file(trained):
    run = trained.run
    files = [file for name, file in vars(run).items() if name.endswith("_file")]
    assert len(files) == 16
    assert [file.name for file in files if not file.stat().st_size] == []
    expected = {*files, *(run.frame_file(epoch) for epoch in range(5))}
    assert {path for path in run.path.rglob("*") if path.is_file()} == expected


def test_history(trained):
    history = trained.run.history
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    for record in history:
        assert all(math.isfinite(value) for value in record.values())
        assert 0 <= record["accuracy"] <= 1
        assert 0 <= record["val_accuracy"] <= 1
        assert record["images_per_second"] * record["seconds"] == pytest.approx(64)
    assert history[-1]["loss"] < history[0]["loss"]


def test_learning_rate_warms_up_for_an_epoch_and_falls_to_zero(trained):
    rates = [record["learning_rate"] for record in trained.run.history]
    decay = [0.5 * (1 + math.cos(math.pi * part / 3)) for part in range(3)]
    assert rates == pytest.approx([0.0, *(3e-3 * part for part in decay)], rel=1e-5)


def test_metrics(trained):
    metrics, history = trained.run.metrics, trained.run.history
    losses = [record["val_loss"] for record in history]
    best = losses.index(min(losses))
    assert metrics["best_epoch"] == best + 1
    assert metrics["epochs"] == 4
    assert metrics["stopped_early"] is False
    assert metrics["accuracy"] == metrics["test"]["accuracy"]
    assert metrics["loss"] == metrics["test"]["loss"]
    assert metrics["test"]["count"] == 20
    assert metrics["train"]["count"] + metrics["validation"]["count"] == 80
    assert metrics["validation"]["loss"] == losses[best]
    assert metrics["validation"]["accuracy"] == history[best]["val_accuracy"]
    assert metrics["parameters"] == sum(weight.size for weight in weights(trained.run))
    assert 0 < metrics["train_seconds"] < metrics["total_seconds"]
    counts = [record["count"] for record in metrics["test"]["per_class"].values()]
    assert counts == [5] * 4 + [0] * 6


def test_the_best_is_chosen_by_the_loss_that_is_trained(trained):
    import keras

    config, run = trained.run.config, trained.run
    assert config.label_smoothing > 0
    whole = data.load("mnist", data_dir=config.data_dir, splits=("train",)).train
    _, held = data.carve(whole, config.validation, seed=config.seed)
    images = distortions.distort_all(held.images, distortions.DISTORTIONS["RTS"], (config.seed, 1))
    found = keras.saving.load_model(run.model_file).predict(images, verbose=0)
    smooth = keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)
    expected = float(smooth(np.eye(found.shape[-1])[held.labels], found))
    assert run.metrics["validation"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_dataset_and_environment(trained):
    import keras

    about = trained.run.dataset
    assert about["class_names"] == list("0123456789")
    assert (about["image_shape"], about["input_shape"]) == ([14, 14, 1], [21, 21, 1])
    assert (about["train"], about["validation"]) == (64, 16)
    environment = trained.run.environment
    assert environment["backend"] == keras.backend.backend()
    assert environment["keras"] == keras.__version__
    assert trained.run.config.backend == keras.backend.backend()
    filled = {"backend": keras.backend.backend(), "augment": 0.0}  # for there is a distortion
    assert trained.run.config == trained.config.replace(**filled)


def test_summary_is_whole_whatever_the_terminal(trained):
    text = trained.run.summary_file.read_text(encoding="utf-8")
    assert "SpatialTransformer" in text
    assert "Param #" in text
    assert [line[-1] for line in text.splitlines()[1:4]] == ["┓", "┃", "┩"]


def test_film_has_a_frame_for_every_epoch(trained):
    with Image.open(trained.run.film_file) as film:
        assert film.n_frames == 5
    sizes = set()
    for frame in trained.run.frames():
        with Image.open(frame) as picture:
            sizes.add(picture.size)
    assert len(sizes) == 1


def test_report_shows_the_result(trained):
    page = trained.run.report_file.read_text(encoding="utf-8")
    assert f"{100 * trained.run.metrics['accuracy']:.1f}%" in page


def test_test_images_are_shown_to_the_model_once_and_last(trained):
    assert trained.steps == [("train", 0), ("test", 0), ("shown", 4)]


def test_model_is_the_best_one_and_loads_without_our_training_code(trained):
    _, arrays = checkpoint(trained.run)
    for i, weight in enumerate(weights(trained.run)):
        np.testing.assert_array_equal(weight, arrays[f"kept/{i}"])


# --- what training is made of --------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "said"), [(3, True), (4, True), (5, False)])
def test_what_sharp_epochs_leave_of_augmentation_is_said(epochs, said, shapes_config):
    from stn.tool import training

    values = {"augment": 0.5, "sharp_epochs": 4, "epochs": epochs}
    about = {"train": 8, "validation": 2, "class_names": ["a"]}
    plan = training._plan(shapes_config.replace(**values), about, [], runs.Run("there"))
    assert ("without augmentation, for sharp_epochs=4" in plan) == said


def test_epochs_are_drawn_anew_from_the_seed(shapes_config, monkeypatch):
    from stn.tool import training
    from stn.tool.data.distortions import DISTORTIONS

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), "uint8")
    split = data.Split(images, np.arange(40, dtype="int32"))

    def batches(epoch, distort="none", **values):
        made = training.Batches(shapes_config.replace(**values), split, DISTORTIONS[distort])
        made.epoch = epoch
        return [made[i] for i in range(len(made))]

    plain = batches(1, augment=0.0)
    assert [len(labels) for _, labels in plain] == [16, 16]  # the last 8 are left out
    shown = np.concatenate([labels for _, labels in plain])
    assert len(set(shown.tolist())) == 32
    for found, labels in plain:
        np.testing.assert_array_equal(found, images[labels])

    # The last epochs show augmented images as they are, but distorted ones distorted.
    last = {"augment": 1.0, "elastic": 1.0, "epochs": 4, "sharp_epochs": 2}
    for epoch, distort, sharp in ((2, "none", False), (3, "none", True), (4, "R", False)):
        for found, labels in batches(epoch, distort, **last):
            assert (found == images[labels]).all() == sharp

    for options in ({"augment": 0.0}, {"augment": 1.0}, {"elastic": 1.0}, {"distort": "R"}):
        first, again = batches(1, **options), batches(1, **options)
        others = batches(2, **options), batches(1, seed=8, **options)
        for one, two in zip(first, again, strict=True):
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])
        for other in others:
            assert (first[0][1] != other[0][1]).any()
    assert (batches(1, augment=1.0)[0][0] != plain[0][0]).any()
    # However many are distorted in one go, it is the same.
    for distort in ("R", "TC"):
        monkeypatch.setattr(training, "_AT_ONCE", 1)
        alone = batches(1, distort, batch_size=8)
        assert sorted(np.concatenate([labels for _, labels in alone])) == list(range(40))
        for at_once in (2_000, 10_000, 1 << 20):
            monkeypatch.setattr(training, "_AT_ONCE", at_once)
            for one, two in zip(alone, batches(1, distort, batch_size=8), strict=True):
                np.testing.assert_array_equal(one[0], two[0])
                np.testing.assert_array_equal(one[1], two[1])
    # Images that are distorted anyway are augmented before.
    distorted = [batches(1, "R", augment=augment)[0][0] for augment in (0.0, 1.0)]
    assert (distorted[0] != distorted[1]).any()
    sharp = [batches(3, "R", **{**last, "augment": n})[0][0] for n in (0.5, 1.0)]
    np.testing.assert_array_equal(*sharp)


def test_validation_images_are_stratified_and_not_trained_on(shapes, shapes_config):
    source = data.load("mnist", data_dir=str(shapes), splits=("train",))
    numbered = data.Split(np.arange(80), source.train.labels)
    for seed in (0, 1):
        kept, held = data.carve(numbered, shapes_config.validation, seed=seed)
        assert sorted([*kept.images, *held.images]) == list(range(80))
        assert np.bincount(held.labels).tolist() == [4] * 4


def test_fewer_images_are_a_part_chosen_by_the_seed(shapes_config):
    from stn.tool import training

    whole = data.Split(np.arange(40)[:, None], np.arange(40, dtype="int32"))
    some, others = (
        training._fewer(whole, shapes_config.replace(train_images=15, seed=seed)) for seed in (1, 2)
    )
    assert len(some) == len(set(some.labels.tolist())) == 15
    np.testing.assert_array_equal(some.images[:, 0], some.labels)
    assert some.labels.tolist() != others.labels.tolist()
    assert training._fewer(whole, shapes_config) is whole
    with pytest.raises(UserError, match=r"at most 40, .* Received: train_images=41"):
        training._fewer(whole, shapes_config.replace(train_images=41))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_smoothed_cross_entropy(smoothing, shapes_config):
    import keras

    from stn.tool import learning

    model = learning.build(
        shapes_config.replace(label_smoothing=smoothing), (14, 14, 1), 4, steps=4
    )
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.3, 0.4, 0.1]], "float32")
    loss = model.compute_loss(y=keras.ops.array([[0], [2]]), y_pred=keras.ops.array(probabilities))
    wanted = np.eye(4)[[0, 2]] * (1 - smoothing) + smoothing / 4
    expected = -(wanted * np.log(probabilities)).sum(-1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_half_precision_and_several_steps_at_a_time(shapes_config):
    import keras

    from stn.tool import learning

    steps = 1 if keras.backend.backend() == "torch" else 3
    config = shapes_config.replace(precision="bfloat16", steps_per_execution=steps)
    model = learning.build(config, (14, 14, 1), 4, steps=4)
    assert keras.config.dtype_policy().name == "float32"
    assert model.get_layer(stn.models.TRANSFORMER).compute_dtype == "bfloat16"
    assert {str(weight.dtype) for weight in model.trainable_weights} == {"float32"}
    assert model.layers[-1].compute_dtype == "float32"
    assert model.steps_per_execution == steps
    images, labels = np.zeros((8, 14, 14, 1), "uint8"), np.arange(8) % 4
    assert np.isfinite(model.train_on_batch(images, labels)[0])
    if steps == 1:
        with pytest.raises(UserError, match=r"^Expected steps_per_execution to be 1 on PyTorch"):
            learning.build(config.replace(steps_per_execution=2), (14, 14, 1), 4, steps=4)


def test_the_machine_decides_on_the_precision_of_a_run_once(shapes_config, tmp_path, monkeypatch):
    from stn.tool import checkpoints, environment, runs

    config = shapes_config.replace(precision="auto")
    monkeypatch.setattr(environment, "fast_precision", lambda: "bfloat16")
    resolved = checkpoints.resolve(config)
    assert resolved.precision == "bfloat16"
    run = runs.Run(tmp_path)
    run.config_file.write_text(resolved.to_toml())
    monkeypatch.setattr(environment, "fast_precision", lambda: "float32")  # on another machine
    assert checkpoints.resolve(config).precision == "float32"
    assert checkpoints.resolve(config, run).precision == "bfloat16"
    assert checkpoints.resolve(config.replace(precision="float32"), run).precision == "float32"


@pytest.mark.parametrize(
    ("backend", "flags", "expected"),
    [
        ("tensorflow", "sse avx2 fma", "float32"),
        ("tensorflow", "avx2 avx512f avx512_bf16", "bfloat16"),
        ("torch", "avx2 amx_tile amx_bf16", "bfloat16"),
        ("torch", "avx512f avx512bw", "float32"),
        ("jax", "avx2 avx512f avx512_bf16", "float32"),
        ("tensorflow", None, "float32"),
    ],
)
def test_half_precision_is_fast_where_the_processor_has_it(backend, flags, expected, monkeypatch):
    from stn.tool import environment

    monkeypatch.setattr(environment.keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(environment, "has_accelerator", lambda: False)
    monkeypatch.setattr(environment, "_cpuinfo", lambda key: flags)
    assert environment.fast_precision() == expected


def test_constant_learning_rate_and_weight_decay(shapes_config):
    from stn.tool import learning

    config = shapes_config.replace(schedule="constant", weight_decay=0.01, learning_rate=2e-3)
    optimizer = learning.build(config, (14, 14, 1), 4, steps=4).optimizer
    assert float(optimizer.learning_rate) == pytest.approx(2e-3)
    assert optimizer.weight_decay == 0.01


# --- families that bend --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "distort", "sampler", "padding"),
    [
        ("tps", "E", "antialiased", "border"),
        ("diffeomorphic", "E", "bilinear", "zeros"),
        ("projective", "P", "linearized", "inward"),
        ("flow", "P", "bicubic", "circular"),
    ],
)
def test_families_of_many_parameters(
    transform, distort, sampler, padding, shapes_config, shapes, tmp_path
):
    """From training, cut off and gone on with, to the report, and what is made of the model."""
    values = {"transform": transform, "distort": distort, "sampler": sampler, "padding": padding}
    config = shapes_config.replace(**values, model="template", epochs=2, deterministic=False)
    with pytest.raises(PowerCut):
        stn.train(config, tmp_path / "run", progress=cut_at(2, 1))
    run = stn.train(config, tmp_path / "run", resume=True)
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in run.history)
    assert all(np.isfinite(array).all() for array in checkpoint(run)[1].values())
    (kernel,) = [w for w in weights(run) if w.shape == (64, stn.get_transform(transform).size)]
    assert np.abs(kernel).max() > 1e-4
    with Image.open(run.film_file) as film:
        assert film.n_frames == 3
    assert transform in run.report_file.read_text(encoding="utf-8")
    again, test = stn.evaluate(run), run.metrics["test"]
    assert (again["accuracy"], again["loss"]) == pytest.approx((test["accuracy"], test["loss"]))
    picture = tmp_path / "digit.png"
    Image.fromarray(draw_shapes(1, 5)[0][0]).save(picture)
    (found,) = stn.predict(run, picture)
    assert 0.1 <= found["probability"] <= 1


@pytest.mark.parametrize("transform", ["affine", "projective", "tps", "flow", "none"])
def test_only_bent_grids_get_lines(transform, shapes_config, tmp_path, monkeypatch):
    """Three rows and three columns of the grid, in pixels of the input."""
    import keras

    from stn import models
    from stn.tool import examples, learning, monitor

    def draw(inputs, outputs, outlines, *, lines, **texts):
        shown.append((outlines, lines))
        return Image.new("RGB", (1, 1))

    shown = []
    monkeypatch.setattr(monitor.pictures, "draw_frame", draw)
    config, run = shapes_config.replace(transform=transform), runs.Run(tmp_path / "run")
    model = learning.build(config, (21, 28, 1), 4, output_size=(9, 5), steps=4)
    images = np.random.default_rng(0).integers(0, 256, (4, 21, 28, 1), "uint8")
    probe = examples.Probe(model, transform)
    watched = monitor.Monitor(run, config, probe, images, np.arange(4), "abcd", count=4)
    if transform == "none":
        watched.draw(0)
        assert shown == [(None, ())]
        return
    layer = model.get_layer(models.TRANSFORMER)
    kernel = layer.head.kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.1, kernel.shape))
    watched.draw(0)
    (((outlines, lines)),) = shown
    if transform in ("affine", "projective"):
        assert lines == []
        return
    grid = keras.Model(model.input, layer.output[2]).predict(watched._images, verbose=0)
    pixels = (grid + 1) * [14, 10.5] - 0.5
    expected = [*(pixels[:, row] for row in (2, 4, 6)), *(pixels[:, :, i] for i in (1, 2, 3))]
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line, wanted, atol=1e-4)
    np.testing.assert_allclose(outlines[:, 0], pixels[:, 0, 0], atol=1e-4)
    assert np.abs(np.diff(lines[1], n=2, axis=1)).max() > 0.1  # not straight


# --- early stopping ------------------------------------------------------------------------------


@pytest.mark.once
def test_early_stopping_counts_across_an_interruption(shapes_config, tmp_path, monkeypatch):
    """The best validation loss is that of epoch 2; with a patience of 3, epoch 5 is the last."""
    from stn.tool import training

    losses = [1.0, 0.5, 0.6, 0.55, 0.7, 0.1, 0.1]

    def score(*args):
        found = original(*args)
        if len(args[1]) == 16:  # the validation images
            found["loss"] = losses[len(runs.Run(tmp_path / "run").history)]
        return found

    def keep(epoch):
        shutil.copy(tmp_path / "run" / "model.keras", tmp_path / f"{epoch}.keras")

    original = training.score
    monkeypatch.setattr(training, "score", score)
    config = shapes_config.replace(model="template", epochs=7, patience=3, deterministic=False)
    with pytest.raises(PowerCut):
        stn.train(config, tmp_path / "run", progress=cut_at(4, 1))
    assert len(runs.Run(tmp_path / "run").history) == 3
    run = stn.train(config, tmp_path / "run", resume=True, progress=Hooks(after=keep))
    assert [record["val_loss"] for record in run.history] == losses[:5]
    assert run.metrics["best_epoch"] == 2
    assert run.metrics["epochs"] == 5
    assert run.metrics["stopped_early"] is True
    # The model of epoch 2, kept through the interruption, is what was tested in the end.
    run.model_file.rename(tmp_path / "end.keras")
    (tmp_path / "4.keras").rename(run.model_file)
    kept = weights(run)
    (tmp_path / "end.keras").replace(run.model_file)
    for before, after in zip(kept, weights(run), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.once
@pytest.mark.parametrize("patience, epochs", [(0, 3), (1, 2)])
def test_the_last_weights_are_kept_if_not_the_best(
    shapes_config, tmp_path, monkeypatch, patience, epochs
):
    """The best validation loss is that of epoch 1; patience still counts from there."""
    from stn.tool import comparison, training

    def score(*args):
        found = original(*args)
        if len(args[1]) == 16:  # the validation images
            found["loss"] = 1.0 + len(runs.Run(tmp_path / "run").history)
        return found

    original = training.score
    monkeypatch.setattr(training, "score", score)
    config = shapes_config.replace(model="template", epochs=3, patience=patience, keep="last")
    run = stn.train(config, tmp_path / "run")
    metrics = run.metrics
    assert (metrics["best_epoch"], metrics["kept_epoch"]) == (1, epochs)
    assert metrics["validation"]["loss"] == run.history[-1]["val_loss"] == epochs
    assert metrics["train"]["loss"] == run.history[-1]["loss"]
    with np.load(run.checkpoint_file) as arrays:
        for i, weight in enumerate(weights(run)):
            np.testing.assert_array_equal(weight, arrays[f"kept/{i}"])
            np.testing.assert_array_equal(weight, arrays[f"variable/{i}"])
    assert comparison.kept_epoch(config, run.history, metrics) == epochs
    assert comparison.kept_epoch(config, run.history, {}) == epochs  # as while it trains


# --- errors --------------------------------------------------------------------------------------


def test_nan_keeps_the_last_checkpoint(shapes_config, tmp_path, monkeypatch):
    from stn.tool import learning, training

    def build(*args, **options):
        models.append(original(*args, **options))
        return models[-1]

    def diverge(epoch):
        if epoch == 2:
            models[0].optimizer.learning_rate.assign(1e30)

    models, original = [], learning.build
    monkeypatch.setattr(learning, "build", build)
    config = shapes_config.replace(schedule="constant", deterministic=False)
    with pytest.raises(training.TrainingError) as caught:
        stn.train(config, tmp_path / "run", progress=Hooks(before=diverge))
    message = str(caught.value)
    assert "NaN or infinite in epoch 2, step " in message
    assert f"checkpoint of epoch 1 is kept in {tmp_path / 'run'}" in message
    assert "smaller --learning-rate than 0.003" in message
    run = runs.Run.open(tmp_path / "run")
    state, arrays = checkpoint(run)
    assert len(run.history) == len(state["history"]) == 1
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert all(np.isfinite(weight).all() for weight in weights(run))
    assert not run.metrics_file.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 65}, r"batch_size to be at most 64, .* \(after 16 were held out\).*=65"),
        ({"model": "reference", "distort": "none"}, r"large enough for the 'reference'.*\(14, 14"),
        ({"data": "minst"}, r"Did you mean 'mnist'"),
        ({"data": "folder:"}, r"Append the path to folder:"),
        ({"hold_epochs": 9}, r"hold_epochs to be smaller than epochs.*--transform none"),
        ({"object_class": "8"}, r"object_class only with --recipe colocalization"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_unsuitable_config_writes_nothing(
    values, message, resume, shapes_config, trained, tmp_path
):
    config = shapes_config.replace(**values)
    out = tmp_path / "deep" / "run"
    if resume:  # of another config: refused before anything is read
        shutil.copytree(trained.run.path, out)
        message = f"other values for: .*{next(iter(values))}="
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        stn.train(config, out, resume=resume)
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_with_another_config_names_the_keys(shapes_config, trained):
    config = shapes_config.replace(seed=8, learning_rate=1.0)
    with pytest.raises(UserError) as caught:
        stn.train(config, trained.run.path, resume=True)
    assert str(caught.value).endswith(
        "Received other values for: learning_rate=1.0 (the run has 0.003), seed=8 (the run has 7)"
    )


def test_resume_with_another_version_of_the_backend(shapes_config, trained, tmp_path):
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    runs.write_json(run.environment_file, run.environment | {"backend_version": "0.0.1"})
    with pytest.raises(UserError, match=r"0\.0\.1, with which the run was started"):
        stn.train(shapes_config, run.path, resume=True)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\3\4junk", None])
def test_resume_from_a_damaged_checkpoint(content, shapes_config, trained, tmp_path):
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    if content is None:
        content = run.checkpoint_file.read_bytes()[:-1000]
    run.checkpoint_file.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.npz, which is damaged: train again"):
        stn.train(shapes_config, run.path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_data_that_is_not_there(resume, shapes_config, trained, tmp_path):
    if resume:
        shutil.copytree(trained.run.path, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    config = shapes_config.replace(data_dir="/no/such/folder")
    with pytest.raises(UserError, match=r"Expected a readable folder.*'/no/such/folder'"):
        stn.train(config, tmp_path / "run", resume=resume)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(b"nothing"), r"two[/\\]0\.png"),
        (lambda file: Image.new("L", (9, 9)).save(file), r"images of one size|shape of the train"),
        (lambda file: shutil.move(file.parent, file.parents[1] / "six"), r"with six besides"),
    ],
)
def test_test_images_are_examined_before_training(spoil, message, tmp_path):
    for split in ("train", "test"):
        for name in ("one", "two"):
            folder = tmp_path / "mine" / split / name
            folder.mkdir(parents=True)
            for i in range(10 if split == "train" else 1):
                Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    spoil(tmp_path / "mine/test/two/0.png")
    config = stn.Config(data=f"folder:{tmp_path / 'mine'}", model="template", batch_size=8)
    with pytest.raises(UserError, match=message):
        stn.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_without_the_state(shapes_config, trained, tmp_path):
    run = runs.Run(shutil.copytree(trained.run.path, tmp_path / "run"))
    run.checkpoint_file.unlink()
    before = run.model_file.read_bytes()
    with pytest.raises(UserError, match=r"checkpoint\.npz.*missing.*--overwrite"):
        stn.train(shapes_config, run.path, resume=True)
    assert run.model_file.read_bytes() == before


def test_resume_with_other_data(shapes_config, trained, tmp_path):
    run = runs.Run(shutil.copytree(trained.run.path, tmp_path / "run"))
    runs.write_json(run.dataset_file, run.dataset | {"train": 63})
    with pytest.raises(
        UserError, match=r"the data the run was begun with, train=63\. Received: 64"
    ):
        stn.train(shapes_config, run.path, resume=True)


def test_resume_of_nothing(shapes_config, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        stn.train(shapes_config, tmp_path / "run", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_in_use(shapes_config, trained, tmp_path):
    with pytest.raises(UserError, match=r"holds a run; go on with it .*--resume.*--overwrite"):
        stn.train(shapes_config, trained.run.path)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="Expected a folder to write the run to"):
        stn.train(shapes_config, tmp_path / "file", overwrite=True)
    (tmp_path / "config.toml").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds other files; choose another --out"):
        stn.train(shapes_config, tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "config.toml"}


def test_no_place_to_write(shapes_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Expected a folder .*file[/\\]run, but .*file is a file"):
        stn.train(shapes_config, tmp_path / "file" / "run")
    with pytest.raises(OSError):
        stn.train(shapes_config, "/proc/stn-run")


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_nobody_may_write_to(there, shapes_config, tmp_path, monkeypatch):
    if there:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr(runs.os, "access", lambda path, mode: False)
    monkeypatch.setattr(data, "load", lambda *args, **options: pytest.fail("data was read"))
    with pytest.raises(PermissionError) as caught:
        stn.train(shapes_config, tmp_path / "run")
    assert caught.value.filename == str(tmp_path / "run" if there else tmp_path)


@pytest.mark.parametrize("kind", ["empty", "link", "current"])
def test_a_folder_that_is_there_stays(kind, shapes_config, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    out = folder
    if kind == "link":
        out = tmp_path / "link"
        out.symlink_to(folder, target_is_directory=True)
    elif kind == "current":
        monkeypatch.chdir(folder)
        out = "."
    run, config = checkpoints.prepare(out, shapes_config, resume=False, overwrite=False)
    checkpoints.begin(run, config, {}, resume=False, overwrite=False)
    assert sorted(file.name for file in folder.iterdir()) == ["config.toml", "environment.json"]
    assert len(list(tmp_path.iterdir())) == 1 + (kind == "link")


@pytest.mark.parametrize("there", [False, True])
def test_two_runs_that_begin_together_are_not_mixed(there, shapes_config, tmp_path):
    out = tmp_path / "run"
    if there:
        out.mkdir()
    first, second = (
        checkpoints.prepare(out, shapes_config.replace(seed=seed), resume=False, overwrite=False)
        for seed in (1, 2)
    )
    checkpoints.begin(*first, {}, resume=False, overwrite=False)
    with pytest.raises(checkpoints.BusyError, match="which holds a run; go on with it"):
        checkpoints.begin(*second, {}, resume=False, overwrite=False)
    assert runs.Run(out).config.seed == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_a_run_is_trained_by_one_process_at_a_time(shapes_config, tmp_path):
    run, config = checkpoints.prepare(
        tmp_path / "run", shapes_config, resume=False, overwrite=False
    )
    with checkpoints.begin(run, config, {}, resume=False, overwrite=False):
        for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
            with pytest.raises(UserError, match="that no other process is training"):
                checkpoints.begin(run, config, {}, **how)
        assert run.config == config
    checkpoints.begin(run, config, {}, resume=True, overwrite=False).close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bounds": {"displacement": 0.1}}, "bounds"),
        ({"bounds": {"scale": [2, 0.5]}}, "scale"),
        ({"transform": "tps", "iterations": 2}, "composes in closed form"),
        ({"transform": "rotation", "heads": 2, "initialization": "tiles"}, "that shifts"),
    ],
)
def test_what_no_data_can_mend_is_told_before_any_is_read(values, message, shapes_config, tmp_path):
    config = shapes_config.replace(data="mnist", data_dir=str(tmp_path / "nowhere"), **values)
    with pytest.raises(UserError, match=message):
        stn.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_its_pictures(trained, tmp_path):
    shutil.copytree(trained.run.path, tmp_path / "run")
    run = runs.Run.open(tmp_path / "run")
    shutil.rmtree(run.frames_folder)
    run.report_file.unlink()
    stn.train(run.config, run.path, resume=True)
    assert run.report_file.exists()


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are UTF-8 there")
def test_a_place_that_cannot_be_written_down(shapes_config, tmp_path):
    with pytest.raises(UserError, match="Expected the path of a folder"):
        stn.train(shapes_config, tmp_path / "run\udcff")


# --- exact resume --------------------------------------------------------------------------------


@pytest.fixture
def deterministic():
    from conftest import forgetting_determinism

    with forgetting_determinism():
        yield


def test_resume_is_exact(shapes, shapes_config, trained, tmp_path, deterministic):
    """Also with other labels of the test images: they have no part in training."""
    other = tmp_path / "data"
    shutil.copytree(shapes, other)
    labels = other / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:8] + bytes(np.arange(20, dtype="uint8") % 10))
    config = shapes_config.replace(data_dir=str(other))
    with pytest.raises(PowerCut):
        stn.train(config, tmp_path / "run", progress=cut_at(3, 2))
    interrupted = runs.Run.open(tmp_path / "run")
    assert lasting(interrupted.history) == lasting(trained.run.history[:2])
    run = stn.train(config, tmp_path / "run", resume=True)
    assert_same_training(run, trained.run)
    for ours, theirs in zip(weights(run), weights(trained.run), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert run.metrics["test"]["confusion"] != trained.run.metrics["test"]["confusion"]
    assert [frame.name for frame in run.frames()] == [f.name for f in trained.run.frames()]


def test_resume_of_a_finished_run_only_tests_and_reports(
    shapes_config, trained, tmp_path, deterministic
):
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    # As if it had been killed just after the last checkpoint.
    runs.write_json(run.history_file, run.history[:-1])
    for file in (run.metrics_file, run.report_file, run.film_file, run.model_file):
        file.unlink()

    def never(*args):
        pytest.fail("there was nothing left to train")

    stn.train(shapes_config, run.path, resume=True, progress=Hooks(before=never))
    assert_same_training(run, trained.run)
    changing = ("total_seconds",)
    ours, theirs = (
        {k: v for k, v in r.metrics.items() if k not in changing} for r in (run, trained.run)
    )
    assert ours == theirs
    assert run.report_file.exists()
    with Image.open(run.film_file) as film:
        assert film.n_frames == 5


# --- real processes ------------------------------------------------------------------------------


@contextlib.contextmanager
def stn_process(*arguments):
    """A running `stn`; killed if the test fails."""
    # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "stn.tool.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(happened, process, seconds=400):
    """Poll without a pause worth the name: some of what is waited for is over in milliseconds."""
    end = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()[1]}")
        assert time.monotonic() < end
        time.sleep(0.0005)


def page(port):
    """What is served on a port of this machine; nothing if there is no server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException):
        return b""


def page_is_served(port):
    """Whether there is a server on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60):
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)  # four processes, which a busy machine makes slow
def test_killed_process_goes_on_exactly(shapes, trained, tmp_path):
    """Killed in the first epoch, killed while a checkpoint is written, interrupted, finished."""
    rng = random.Random(3)
    run = runs.Run(tmp_path / "run")
    flags = [
        f"--{key.replace('_', '-')}={value}"
        for key, value in trained.config.model_dump(exclude_unset=True).items()
        if key != "deterministic"
    ]
    with stn_process("train", *flags, "--deterministic", "--out", run.path) as process:
        wait_until(run.checkpoint_file.exists, process)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
    assert runs.Run.open(run.path).history == []
    checkpoint(run)  # can be read

    with stn_process("train", "--resume", run.path) as process:
        writing = lambda: list(run.path.glob(".unfinished-checkpoint-*"))  # noqa: E731
        wait_until(writing, process)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
    state, _ = checkpoint(run)
    assert len(state["history"]) <= 2

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with stn_process("train", "--resume", run.path, "--watch", "--port", port) as process:
        before = len(state["history"])
        # Someone looks on; a page may take longer to draw than the rest of the training.
        seen: list[bytes] = []
        watching = threading.Thread(target=lambda: seen.append(page(port)))
        wait_until(lambda: page_is_served(port), process)
        watching.start()
        wait_until(lambda: len(run.history) > before, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=400)
    watching.join()
    assert all(b"done" in one for one in seen if one), "tests/test_watching.py looks closer"
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == f"stn: Interrupted. Go on with: stn train --resume {run.path}"
    assert "Traceback" not in err
    assert len(checkpoint(run)[0]["history"]) >= before + 1

    with stn_process("train", "--resume", run.path) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert out == f"{run.path}\n"
    assert_same_training(run, trained.run)
    for ours, theirs in zip(weights(run), weights(trained.run), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert run.metrics["test"] == trained.run.metrics["test"]
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def test_jax_on_an_accelerator_must_know_of_determinism_from_the_start(monkeypatch):
    from stn.tool import environment

    monkeypatch.setattr(environment.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(environment, "has_accelerator", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    with pytest.raises(UserError, match="--xla_gpu_deterministic_ops=true"):
        environment.make_deterministic()
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here --xla_gpu_deterministic_ops=true")
    environment.make_deterministic()
