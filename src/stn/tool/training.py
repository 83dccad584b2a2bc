"""Training: read `train` from top to bottom; it is the whole story.

Everything random in an epoch is drawn from the seed and the number of the epoch, and after every
epoch one atomic file holds all state there is. So a run that was killed goes on exactly where an
uninterrupted one would be.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from stn.tool import (
    alarms,
    alignment,
    checkpoints,
    data,
    environment,
    examples,
    films,
    learning,
    pictures,
    plots,
    report,
    runs,
    sweeps,
    walls,
)
from stn.tool.board import Board
from stn.tool.config import Config, Stream, UserError
from stn.tool.data import addition, distortions
from stn.tool.evaluation import predict_probabilities, score
from stn.tool.monitor import Monitor
from stn.tool.progress import Progress
from stn.tool.tasks import (
    background_of,
    check_unseen,
    distorted_test,
    distortion_of,
    for_task,
    load_split,
)

# Values in the training images that are distorted in one go.
_AT_ONCE = 1 << 20


class TrainingError(RuntimeError):
    """Training cannot go on; what was reached before is kept. Exit code 1."""


def train(
    config: Config,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> runs.Run:
    """Train a classifier, show what its transformer learns, and test it.

    Args:
        config: What to do.
        out: The run folder to write; `stn.tool.runs` says what will be in it.
        resume: Go on with the run in `out`, exactly as if it had never stopped. The
            configuration must be that of the run.
        overwrite: Replace what is in `out`.
        progress: Where to show progress; nowhere by default.

    Returns:
        The finished run.

    Raises:
        UserError: If something given cannot be used; nothing has been written then.
        TrainingError: If the loss is not a number any more; the last checkpoint is kept.

    Example:
        >>> run = train(Config(epochs=1), "runs/quick")  # doctest: +SKIP
    """
    begun = time.perf_counter()
    progress = progress or Progress(quiet=True)
    run, config = checkpoints.prepare(out, config, resume=resume, overwrite=overwrite)
    _check(config)
    board = Board(run, wanted=config.tensorboard)

    # Data. What is wrong with the test images is said now, not after hours; the model meets them at
    # the end, when everything has been decided.
    with progress.step(f"Reading {config.data}"):
        files = data.training_files(config.data, config.seed)
        names, whole = load_split(config, "train")
        shape = whole.images.shape[1:]
        test = _load_test(config, shape)
        whole = _fewer(whole, config)
        train_split, validation_split = data.carve(whole, config.validation, seed=config.seed)
        del whole  # half of the memory of a large data set
        names, validation_split = for_task(config, names, validation_split, Stream.VALIDATION)
        channels = validation_split.images.shape[-1]
        background, kind = background_of(train_split.images)
        color = None if background is None else background.tolist()
        distortion = distortion_of(config, color)
        input_shape = (*distortion.output_size(shape[:2]), channels)
        _check_data(config, names, train_split, validation_split)
        validation_images = distortions.distort_all(
            validation_split.images, distortion, (config.seed, Stream.VALIDATION)
        )

    # Model.
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        environment.make_deterministic()
    steps = len(train_split) // config.batch_size
    model = learning.build(
        config,
        input_shape,
        len(names),
        output_size=config.output_size or shape[:2],
        steps=steps,
        background=None if background is None else np.tile(background, channels // shape[-1]),
    )
    probe = examples.Probe(model, config.transform)
    monitor = Monitor(run, config, probe, validation_images, validation_split.labels, names)
    lookout = alarms.Lookout(model, config, probe, validation_images, validation_split.labels)
    summary = checkpoints.summarize(model)
    about = {
        "name": config.data,
        "class_names": list(names),
        "image_shape": list(shape),
        "input_shape": list(input_shape),
        "background": kind,
        "background_color": color,
        "train": len(train_split),
        "validation": len(validation_split),
        **({} if files is None else {"training_files": files}),
    }
    with checkpoints.begin(run, config, about, resume=resume, overwrite=overwrite):
        if run.checkpoint_file.exists():
            check_unseen(config, run.dataset)
            state = checkpoints.restore(run, model)
            kept = state.pop("kept")
        else:
            state = {"history": [], "best_epoch": 0, "best_loss": math.inf, "seconds": 0.0}
            kept = model.get_weights()
            runs.write_text(run.summary_file, summary)
            runs.write_json(run.dataset_file, about)
            monitor.draw(0)
            board.add(0, {}, run.frame_file(0))
            checkpoints.save(run, model, state, kept)
        progress.say(summary)
        progress.say(_plan(config, about, test, run))

        # Training.
        batches = Batches(config, train_split, distortion, color)
        for epoch in range(len(state["history"]) + 1, config.epochs + 1):
            if _out_of_patience(config, state):
                break
            started = time.perf_counter()
            batches.epoch = epoch
            rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
            with progress.epoch(epoch, config.epochs, steps) as bar:
                watcher = Watcher(bar, epoch, config, run)
                logs = learning.fit(model, batches, watcher)
            seconds = time.perf_counter() - started

            validation = score(
                predict_probabilities(model, validation_images),
                validation_split.labels,
                names,
                # The loss that is trained. Without smoothing it is flat long before the end, and a
                # lucky epoch from before the learning rate fell would be taken for the best.
                config.label_smoothing,
            )
            record = {
                "epoch": epoch,
                "loss": float(logs["loss"][-1]),
                "accuracy": float(logs["accuracy"][-1]),
                "val_loss": validation["loss"],
                "val_accuracy": validation["accuracy"],
                "learning_rate": rate,
                "seconds": seconds,
                "images_per_second": steps * config.batch_size / seconds,
                **lookout.measure(),
            }
            state["history"].append(record)
            if not math.isfinite(record["loss"]) or not math.isfinite(record["val_loss"]):
                raise TrainingError(_diverged(epoch, steps, config, run))
            better = record["val_loss"] < state["best_loss"]
            if better:
                state |= {"best_loss": record["val_loss"], "best_epoch": epoch}
            if better or config.keep == "last":
                kept = model.get_weights()
                checkpoints.save_model(run, model)
            state["seconds"] += time.perf_counter() - started
            monitor.draw(epoch)
            board.add(epoch, record, run.frame_file(epoch))
            checkpoints.save(run, model, state, kept)
            progress.epoch_done(record, best=better)
            for alarm in alarms.new(state["history"], config):
                progress.say(f"Alarm: {alarm}")

        board.close()

        # The weights that are kept, tested once.
        model.set_weights(kept)
        checkpoints.save_model(run, model)
        with progress.step("Testing the model, drawing the report"):
            results = _test(run, config, model, probe, names, test, color)
            epochs = len(state["history"])
            kept_epoch = state["best_epoch"] if config.keep == "best" else epochs
            record = state["history"][kept_epoch - 1]
            runs.write_json(
                run.metrics_file,
                {
                    **results,
                    "validation": {
                        "count": len(validation_split),
                        "loss": record["val_loss"],
                        "accuracy": record["val_accuracy"],
                    },
                    "train": {
                        "count": len(train_split),
                        "loss": record["loss"],
                        "accuracy": record["accuracy"],
                    },
                    "best_epoch": state["best_epoch"],
                    "kept_epoch": kept_epoch,
                    "epochs": epochs,
                    "stopped_early": _out_of_patience(config, state),
                    "train_seconds": state["seconds"],
                    "total_seconds": time.perf_counter() - begun,
                    "parameters": model.count_params(),
                },
            )
            films.write_films(run)
            runs.write_bytes(run.curves_file, plots.draw_curves(state["history"], kept_epoch))
            report.write_report(run)
    return run


class Batches(keras.utils.PyDataset):
    """The training images of an epoch in a fresh order, freshly distorted."""

    def __init__(
        self,
        config: Config,
        split: data.Split,
        distortion: distortions.Distortion,
        background: Sequence[float] | None = (0.0,),
    ):
        super().__init__()
        self._config, self._split = config, split
        self._augmented = self._plain = distortion
        if config.augment or config.elastic:
            beyond = "border" if background is None else "zeros"
            small = distortions.augmentation(config.augment or 0.0, config.elastic, beyond)
            self._augmented = distortion.after(small.on(background))
        height, width = distortion.output_size(split.images.shape[1:3])
        values = height * width * split.images.shape[-1] * config.batch_size
        # A call costs an accelerator more than small images do. A power of two, as warps compile.
        self._at_once = 1 << max(0, int(math.log2(_AT_ONCE / values)))
        self.epoch = 1

    @property
    def epoch(self) -> int:
        """The epoch its images are of; to set it draws another order."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch, self._drawn = epoch, None
        rng = np.random.default_rng((self._config.seed, Stream.TRAINING, epoch))
        self._order = rng.permutation(len(self._split))
        # What augmentation blurs and bends is gone for good: at the end they are seen as they are.
        sharp = epoch > self._config.epochs - self._config.sharp_epochs
        self._distortion = self._plain if sharp else self._augmented
        if self._config.task == "addition":
            self._others = rng.permutation(len(self._split))

    def __len__(self) -> int:
        return len(self._split) // self._config.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        block, place = divmod(index, self._at_once)
        if block != self._drawn:
            self._images, self._labels = self._draw(block)
            self._drawn = block
        size = self._config.batch_size
        part = slice(place * size, (place + 1) * size)
        return self._images[part], self._labels[part]

    def _draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels of as many batches as are made in one go."""
        size, first = self._config.batch_size, block * self._at_once
        last = min(first + self._at_once, len(self))
        part = slice(first * size, last * size)
        chosen = self._split.take(self._order[part])
        if self._config.task == "addition":
            chosen = addition.pair(chosen, self._split.take(self._others[part]))
        if self._distortion.idle:
            return chosen.images, chosen.labels
        seeds = [
            (self._config.seed, Stream.TRAINING, self._epoch, index) for index in range(first, last)
        ]
        return self._distortion(chosen.images, *map(np.random.default_rng, seeds)), chosen.labels


class Watcher(keras.callbacks.Callback):
    """Seeds an epoch, shows progress, and stops at a loss that is not a number."""

    def __init__(self, bar: Any, epoch: int, config: Config, run: runs.Run):
        super().__init__()
        self._bar, self._epoch, self._config, self._run = bar, epoch, config, run

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Seed what has a random state of its own."""
        # PyTorch draws dropout from a state of its own, which no variable of the model holds. Not
        # before `fit`: building the metrics draws from it too, in the first epoch of a process.
        seeds = np.random.SeedSequence((self._config.seed, Stream.TRAINING, self._epoch))
        keras.utils.set_random_seed(int(seeds.generate_state(1)[0]))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Show the step, and look at its loss."""
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(_diverged(self._epoch, batch + 1, self._config, self._run))
        self._bar.update(batch + 1, loss, logs.get("accuracy"), self._config.batch_size)


def _diverged(epoch: int, step: int, config: Config, run: runs.Run) -> str:
    kept = (
        f"The checkpoint of epoch {epoch - 1} is kept in {run.path}"
        if epoch > 1
        else "No epoch was finished"
    )
    clip = "" if config.transform == "none" else ", or --gradient-clip 1"
    return (
        f"The loss became NaN or infinite in epoch {epoch}, step {step}. {kept}. "
        f"Train again with a smaller --learning-rate than {config.learning_rate:g}{clip}"
    )


def _fewer(whole: data.Split, config: Config) -> data.Split:
    if config.train_images is None:
        return whole
    if config.train_images > len(whole):
        raise UserError(
            f"Expected train_images to be at most {len(whole)}, the training images of "
            f"{config.data}. Received: train_images={config.train_images}"
        )
    order = np.random.default_rng((config.seed, Stream.TRAINING)).permutation(len(whole))
    return whole.take(np.sort(order[: config.train_images]))


def _test(
    run: runs.Run,
    config: Config,
    model: keras.Model,
    probe: examples.Probe,
    names: Sequence[str],
    test: data.Split,
    background: Sequence[float] | None,
) -> dict[str, Any]:
    """Test the model, draw what it does to the test images, and return what is measured."""
    images = distorted_test(config, test, background)
    probabilities = predict_probabilities(model, images)
    results = score(probabilities, test.labels, names)
    runs.write_bytes(run.confusion_file, plots.draw_confusion(results["confusion"], names))
    walls.hang(run, probe, images, test.labels, probabilities, seed=config.seed)
    straightened, turned = {}, None
    if config.transform != "none":
        seen = alignment.survey(probe, images, test.labels, len(names))
        if config.task == "classification":  # images of the same sum are not alike
            straightened = {key: seen[key].numbers() for key in ("inputs", "outputs")}
            averages = seen["inputs"].means(), seen["outputs"].means()
            pictures.save(pictures.draw_averages(*averages, names), run.averages_file)
        runs.write_bytes(run.theta_file, plots.draw_theta(seen["quantities"]))
        turned = sweeps.turns_left_over(probe, config, test.images, background)
    return {
        "accuracy": results["accuracy"],
        "loss": results["loss"],
        "test": results,
        "congealing": straightened,
        "alignment": turned,
    }


def _load_test(config: Config, shape: tuple[int, ...]) -> data.Split:
    names, test = load_split(config, "test", channels=shape[-1])
    if test.images.shape[1:] != shape:
        raise UserError(
            f"Expected test images of the shape of the training images, {shape}. "
            f"Received: {test.images.shape[1:]}"
        )
    return for_task(config, names, test, Stream.TEST)[1]


def _check(config: Config) -> None:
    """What can be said before the data is there."""
    if config.transform != "none" and config.hold_epochs >= config.epochs:
        raise UserError(
            "Expected hold_epochs to be smaller than epochs: a transformer that is held to the end "
            "is not trained; for a control use --transform none. Received: "
            f"hold_epochs={config.hold_epochs}, epochs={config.epochs}"
        )
    learning.check(config)
    if config.object_class is not None:
        raise UserError(
            "Expected object_class only with --recipe colocalization. Received: "
            f"object_class={config.object_class!r} with task={config.task!r}"
        )


def _check_data(
    config: Config, names: Sequence[str], train_split: data.Split, validation: data.Split
) -> None:
    if len(names) < 2:
        raise UserError(f"Expected at least 2 classes. Received: {list(names)}")
    if config.batch_size > len(train_split):
        raise UserError(
            f"Expected batch_size to be at most {len(train_split)}, the number of training images "
            f"(after {len(validation)} were held out). Received: batch_size={config.batch_size}"
        )
    if not len(validation):
        raise UserError(
            "Expected images enough for a validation split. Received: "
            f"{len(train_split)} images and validation={config.validation}; use a larger share"
        )


def _out_of_patience(config: Config, state: dict[str, Any]) -> bool:
    waited = len(state["history"]) - state["best_epoch"]
    return 0 < config.patience <= waited


def _plan(config: Config, about: dict[str, Any], test: data.Split, run: runs.Run) -> str:
    drawn = " (drawn, for want of a folder test)" if "training_files" in about else ""
    augmented = config.augment or config.elastic
    sharp = (
        f" All epochs are without augmentation, for sharp_epochs={config.sharp_epochs}."
        if augmented and config.epochs <= config.sharp_epochs
        else ""
    )
    return (
        f"{config.data}, distortion {config.distort}: {about['train']} training, "
        f"{about['validation']} validation and {len(test)} test images{drawn}, "
        f"{len(about['class_names'])} classes. "
        f"{config.backend}, {config.precision}, at most {config.epochs} epochs.{sharp} "
        f"Everything goes to {run.path}"
    )
