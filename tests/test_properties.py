"""What every family can do on the running backend: compiled, in half precision, saved and loaded.

Together with the tests marked `shows` elsewhere these make the table in `docs/families.md`:

    for b in tensorflow jax torch; do KERAS_BACKEND=$b pytest -n 0 --table -m shows; done
"""

import keras
import numpy as np
import pytest
from keras import ops

import stn
from conftest import PROPERTIES, STANDING_FOR_ALL, TABLE, over, read_table, render_table
from stn.transforms import FAMILIES

BACKEND = keras.backend.backend()
IDS = [f"{name}-{n}d" for name, n in FAMILIES]
families = over(FAMILIES.values())
RNG = np.random.default_rng(0)
IMAGES = {
    2: RNG.uniform(0, 1, (4, 6, 5, 2)).astype("float32"),
    3: RNG.uniform(0, 1, (4, 3, 4, 5, 2)).astype("float32"),
}


def quick(family):
    """Whether it compiles within seconds and stands for others: all others are marked slow."""
    if BACKEND == "torch":
        return family in (stn.TRANSFORMS["similarity"], stn.TRANSFORMS["tps"])
    return (family.name, family.dimensions) in STANDING_FOR_ALL and family.name != "diffeomorphic"


def near_identity(family, batch, spread=0.1):
    noise = np.random.default_rng(1).normal(size=(batch, family.size))
    return (np.array(family.identity) + spread * noise).astype("float32")


def warp(images, params, family):
    return stn.warp(images, params, family, data_format="channels_last")


# PyTorch warns that its compiler looks through caches, and of what it does between two graphs.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.shows("compiled")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if quick(family) else pytest.mark.slow, id=id)
        for id, family in zip(IDS, FAMILIES.values(), strict=True)
    ],
)
def test_compiled(family):
    """The value and its gradient are those of the uncompiled function."""
    images = ops.convert_to_tensor(IMAGES[family.dimensions])
    params = near_identity(family, 4)

    def loss(params):
        return ops.sum(ops.square(warp(images, params, family)))

    expected = float(ops.convert_to_numpy(loss(params)))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def compiled(params):
            with tf.GradientTape() as tape:
                tape.watch(params)
                value = loss(params)
            return value, tape.gradient(value, params)

        value, gradient = compiled(tf.constant(params))
    elif BACKEND == "jax":
        import jax

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    else:
        import torch

        torch.compiler.reset()
        # Captured as graphs, forward and backward; generating machine code would take minutes.
        compiled = torch.compile(loss, backend="aot_eager")
        gradient = torch.tensor(params, requires_grad=True)
        value = compiled(gradient)
        value.backward()
        value, gradient = value.detach(), gradient.grad
    assert abs(float(value) - expected) < 1e-4 * expected
    gradient = ops.convert_to_numpy(gradient)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.shows("half precision")
@families
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(family, dtype):
    """Coordinates are computed in float32: only the images are rounded, in and out."""
    images = IMAGES[family.dimensions]
    params = near_identity(family, 4)
    found = warp(ops.cast(images, dtype), params, family)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    expected = ops.convert_to_numpy(warp(images, params, family))
    tolerance = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]  # half a unit, of values up to 1
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(found, "float32")), expected, rtol=0, atol=1.01 * tolerance
    )


@pytest.mark.shows("dynamic batch", "save and load")
@families
def test_any_batch_and_saved(family, tmp_path):
    """One model for batches of any size, that gives each image what it gets alone; also loaded."""
    keras.utils.set_random_seed(0)
    images = IMAGES[family.dimensions]
    inputs = keras.Input(images.shape[1:])
    layer = stn.SpatialTransformer(
        family, localization="mlp", data_format="channels_last", name="stn"
    )
    model = keras.Model(inputs, layer(inputs))
    layer.head.kernel.assign(0.05 * np.random.default_rng(2).normal(size=layer.head.kernel.shape))
    assert model.output_shape == (None, *images.shape[1:])
    together = ops.convert_to_numpy(model(images))
    assert np.abs(together - images).max() > 1e-3
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(images[:1])), together[:1], rtol=0, atol=1e-5
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert again.get_layer("stn").transform is family
    np.testing.assert_array_equal(ops.convert_to_numpy(again(images)), together)


def test_the_table_in_the_docs_is_whole():
    results = read_table()
    for backend in ("tensorflow", "jax", "torch"):
        found = results[backend]
        assert set(found) == {f"{name} {n}-D" for name, n in FAMILIES}, "run again with --table"
        for row, family in zip(found, FAMILIES.values(), strict=True):
            closed = {"inverse": family.invertible, "composition": family.composable}
            for key in PROPERTIES:
                passed = found[row].get(key)
                assert passed is True or not closed.get(key, True), f"{row}, {key}, {backend}"
    assert TABLE.with_suffix(".md").read_text(encoding="utf-8") == render_table(results)
