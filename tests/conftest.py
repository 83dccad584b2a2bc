"""What several test files share. Nothing here imports Keras before a test asks for it."""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

# The tensors here are tiny: on a busy machine threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What its libraries log on the way is no output of ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The same small models are compiled again and again, by other processes too; JAX can remember.
_COMPILED = tempfile.TemporaryDirectory(prefix="stn-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _COMPILED.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


# --- the table of families in the docs -----------------------------------------------------------

TABLE = Path(__file__).parents[1] / "docs" / "families.json"
PROPERTIES = {
    "identity": "the identity returns the image, bit for bit",
    "nested": "agrees with the more general families it is a case of",
    "inverse": "`inverse` undoes it",
    "composition": "`compose` is one after the other",
    "points": "points go there and back, in closed form or by Newton's method",
    "rows": "each image of a batch depends on its own parameters only",
    "gradient": "gradients to parameters and image agree with finite differences in float64",
    "bounds": "parameters stay within `bounds`, and the gradient never vanishes",
    "half precision": "float16 and bfloat16 images within half a unit of the last place",
    "compiled": "the same compiled, forward and backward (PyTorch: captured as graphs)",
    "dynamic batch": "one model for batches of any size",
    "save and load": "a saved model gives the same, bit for bit",
}


def pytest_addoption(parser):
    parser.addoption("--table", action="store_true", help="write docs/families.md")


def pytest_configure(config):
    config.table = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marker = item.get_closest_marker("shows")
    if marker and not report.skipped and (call.when == "call" or report.failed):
        family = item.callspec.params["family"]
        row = item.config.table.setdefault(f"{family.name} {family.dimensions}-D", {})
        for key in marker.args:
            row[key] = row.get(key, True) and report.passed


def pytest_sessionfinish(session):
    if not session.config.getoption("--table"):
        return
    import keras

    from stn.transforms import FAMILIES

    found = session.config.table
    results = read_table() if TABLE.exists() else {}
    results[keras.backend.backend()] = {
        row: {key: found[row][key] for key in PROPERTIES if key in found[row]}
        for row in (f"{name} {n}-D" for name, n in FAMILIES)
        if row in found
    }
    TABLE.write_text(json.dumps(results, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    TABLE.with_suffix(".md").write_text(render_table(results), encoding="utf-8")


def read_table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def render_table(results):
    """The page: for each family and property one sign per backend."""
    backends = [name for name in ("tensorflow", "jax", "torch") if name in results]
    signs = {True: "✓", False: "✗", None: "-"}
    names = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
    lines = [
        "# What every family can do",
        "",
        "Made by the tests themselves; each sign is the outcome on one backend, in the order "
        f"{', '.join(names[b] for b in backends)}.",
        "A dash: the family has no such thing (a flow has no inverse in closed form, but its",
        "points do go back).",
        "",
        *(f"- **{key}**: {text}" for key, text in PROPERTIES.items()),
        "",
        "| family | " + " | ".join(PROPERTIES) + " |",
        "|---" * (len(PROPERTIES) + 1) + "|",
    ]
    for row in results[backends[0]]:
        cells = (
            " ".join(signs[results[b].get(row, {}).get(key)] for b in backends)
            for key in PROPERTIES
        )
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Written by `pytest -n 0 --table -m shows`, run once on each backend (`KERAS_BACKEND`).",
    ]
    return "\n".join(lines) + "\n"


# --- tools for tests -----------------------------------------------------------------------------


# One of each kind: matrices, those that keep the axes, and what bends, in the plane and in space.
STANDING_FOR_ALL = {
    *(("affine", 2), ("attention", 2), ("projective", 2), ("tps", 2), ("diffeomorphic", 2)),
    *(("rigid", 3), ("flow", 3)),
}


def over(choice):
    """Run a test for all families of a choice; on further backends for those that stand for all."""
    return pytest.mark.parametrize(
        "family",
        [
            pytest.param(
                family,
                id=f"{family.name}-{family.dimensions}d",
                marks=()
                if (family.name, family.dimensions) in STANDING_FOR_ALL
                else pytest.mark.once,
            )
            for family in choice
        ],
    )


def pairs(names, first, second, *, everywhere=()):
    """Run a test for all pairs of two lists; on further backends for some.

    What is true of a pair is hardly up to the backend, and JAX compiles for each. There each of the
    shorter list comes with one of the other, and with all of them what is in `everywhere`.
    """
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(a, b, marks=() if a in everywhere or i == j else pytest.mark.once)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
        ],
    )


@pytest.fixture
def float64():
    """Let JAX compute in float64 too; the other backends do when they are handed it."""
    import keras

    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def gradient(float64):
    """The gradient of a function from one float64 tensor to a scalar, on the running backend."""
    import keras

    def with_tensorflow(function, value):
        import tensorflow as tf

        value = tf.constant(value)
        with tf.GradientTape() as tape:
            tape.watch(value)
            result = function(value)
        return tape.gradient(result, value).numpy()

    def with_jax(function, value):
        import jax

        return np.asarray(jax.grad(function)(jax.numpy.asarray(value)))

    def with_torch(function, value):
        import torch

        value = torch.tensor(value, requires_grad=True)
        function(value).backward()
        return value.grad.numpy()

    return {"tensorflow": with_tensorflow, "jax": with_jax, "torch": with_torch}[
        keras.backend.backend()
    ]


@pytest.fixture
def check_gradient(gradient):
    """Compare a gradient with central differences.

    `function` takes a batch of float64 values and returns one row of results for each, so that all
    the differences are one call.
    """
    from keras import ops

    def check(function, value, step=1e-6, atol=1e-6):
        value = np.asarray(value, "float64")
        # Always as many rows, most of them without a difference: JAX compiles anew for each batch.
        same = np.repeat(value[None], 40, axis=0)
        steps = step * np.eye(40, value.size).reshape(same.shape)
        after, before = function(same + steps), function(same - steps)
        weights = np.random.default_rng(9).normal(size=tuple(after.shape)[1:])

        def scalars(results):
            results = results * ops.convert_to_tensor(weights)
            return ops.sum(results, axis=tuple(range(1, len(results.shape))))

        change = ops.convert_to_numpy(scalars(after) - scalars(before))
        expected = change[: value.size].reshape(value.shape) / (2 * step)
        assert np.abs(expected).max() > 1e-3, "a gradient of zero would agree with anything"
        found = gradient(lambda values: ops.sum(scalars(function(values))), same)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, np.stack([expected] * 40), rtol=1e-6, atol=atol)

    return check


@pytest.fixture
def command(monkeypatch, capfd):
    """Run `stn` in this process; gives exit code, standard output and standard error."""
    from stn.tool import cli

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


def draw_shapes(count, seed, size=14):
    """Bars, crosses and rings, `count` of each of 4 classes: uint8 images and their labels."""
    rng = np.random.default_rng(seed)
    images, labels = np.zeros((4 * count, size, size), "uint8"), np.repeat(np.arange(4), count)
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(-1, 2, 2) + size // 2
        ink = rng.integers(180, 256)
        if label in (0, 2):
            image[2:-2, column - 1 : column + 1] = ink
        if label in (1, 2):
            image[row - 1 : row + 1, 2:-2] = ink
        if label == 3:
            image[row - 4 : row + 4, column - 4 : column + 4] = ink
            image[row - 2 : row + 2, column - 2 : column + 2] = 0
    return images, labels


def write_idx(path, array):
    """Write an array as an idx file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype("uint8").tobytes())


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder of idx files that pass for a very small MNIST, of which 6 classes have no image."""
    folder = tmp_path_factory.mktemp("shapes")
    for stem, count, seed in (("train", 20, 1), ("t10k", 5, 2)):
        images, labels = draw_shapes(count, seed)
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="session")
def shapes_config(shapes):
    """What the run in `trained` was asked for."""
    from stn.tool.config import Config

    return Config(
        data="mnist",
        data_dir=str(shapes),
        distort="RTS",
        validation=0.2,
        epochs=4,
        batch_size=16,
        learning_rate=3e-3,
        patience=0,
        seed=7,
        deterministic=True,
    )


@pytest.fixture(scope="session")
def trained(shapes_config, tmp_path_factory):
    """A finished run, and what was read and shown to its model when: `(what, finished epochs)`."""
    from types import SimpleNamespace

    import stn
    from stn.tool import data, training

    path = tmp_path_factory.mktemp("runs") / "trained"
    steps = []

    def load(*args, splits, **options):
        steps.append((*splits, len(stn.Run(path).history)))
        return original_load(*args, splits=splits, **options)

    def distorted_test(*args):
        steps.append(("shown", len(stn.Run(path).history)))
        return original_distorted_test(*args)

    original_load, original_distorted_test = data.load, training.distorted_test
    with pytest.MonkeyPatch.context() as patch, forgetting_determinism():
        patch.setattr(data, "load", load)
        patch.setattr(training, "distorted_test", distorted_test)
        run = stn.train(shapes_config, path)
    return SimpleNamespace(run=run, config=shapes_config, steps=steps)


@contextlib.contextmanager
def forgetting_determinism():
    """Undo what `deterministic=True` does to the whole process, for the sake of other tests."""
    import keras

    try:
        yield
    finally:
        if keras.backend.backend() == "tensorflow":
            from tensorflow.python.framework import config

            config.disable_op_determinism()
        elif keras.backend.backend() == "torch":
            import torch

            torch.use_deterministic_algorithms(False)


class Brightness:
    """A model of two classes: the probability of the second is the brightness of the image."""

    def __init__(self):
        self.batches = []

    def predict_on_batch(self, images):
        self.batches.append(images)
        light = images.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - light, light], -1)


@pytest.fixture
def digit():
    """A one, 14x14, white on black."""
    image = np.zeros((14, 14), "uint8")
    image[2:12, 6:8] = 255
    image[3, 5] = 100
    return image
