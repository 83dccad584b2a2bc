"""The fast ways of reading bilinearly, against the reference implementation of all samplers."""

import keras
import numpy as np
import pytest
from keras import ops

import stn
from stn import bilinear, samplers

BACKEND = keras.backend.backend()
SHAPES = [((3, 5, 4, 2), (11,)), ((2, 6, 7, 1), (6, 4)), ((2, 4, 3, 5, 3), (4, 5))]
SHAPES += [((2, 5, 4, bilinear.FEW + 1), (12,))]
PADDINGS = {"zeros": 0.0, "border": None, "constant": 2.0}
EDGES = [-1, 0, 1, 2, 0.5, -0.5, 1e30, np.inf, -np.inf]
xla_only = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch reads by a kernel of its own")


def draw(shape, points, seed=0):
    """Images, a coordinate for each axis, and what follows the result."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=shape).astype("float32")
    at = [rng.uniform(-3, n + 2, (shape[0], *points)).astype("float32") for n in shape[1:-1]]
    for coordinate, n in zip(at, shape[1:-1], strict=True):
        coordinate.reshape(-1)[: len(EDGES)] = EDGES
        coordinate.reshape(-1)[len(EDGES) : len(EDGES) + 2] = [n - 1, n - 1.5]
    return images, at, rng.normal(size=(shape[0], *points, shape[-1])).astype("float32")


def results(gradient, images, at, weights, padding, wrap=lambda function: function):
    """What is read, and its gradients to the images and to the coordinates."""
    fill = PADDINGS[padding]
    fill = None if fill is None else (fill,) * images.shape[-1]

    def read(images, at):
        return samplers._read(images, ops.unstack(at), "bilinear", padding, fill, False)

    def scalar(images, at):
        return ops.sum(wrap(read)(images, at) * weights)

    at = np.stack(at)
    tensors = ops.convert_to_tensor(images), ops.convert_to_tensor(at)
    return [
        ops.convert_to_numpy(wrap(read)(*tensors)),
        gradient(lambda images: scalar(images, tensors[1]), images),
        gradient(lambda at: scalar(tensors[0], at), at),
    ]


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)  # not by XLA: the fast way compiles itself
    import jax

    return jax.jit(function)


@xla_only
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape, points", SHAPES)
def test_values_and_gradients_of_the_reference(shape, points, padding, gradient, monkeypatch):
    drawn = draw(shape, points)
    assert bilinear.suits(*(ops.convert_to_tensor(drawn[0]), drawn[1]))
    found = [results(gradient, *drawn, padding, compiled)]
    if BACKEND == "tensorflow":  # where that is another way
        found.append(results(gradient, *drawn, padding))
    monkeypatch.setattr(bilinear, "suits", lambda *_: False)
    expected = results(gradient, *drawn, padding)
    for way in found:
        for one, other in zip(way, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


@xla_only
@pytest.mark.parametrize("channels", [1, 3, bilinear.FEW + 1])
def test_in_parts_it_is_the_same(channels, gradient, monkeypatch):
    drawn = draw((7, 6, 5, channels), (12,))
    whole = results(gradient, *drawn, "zeros", compiled)
    monkeypatch.setattr(bilinear, "PART", 20 * channels)
    assert len(bilinear._parts(drawn[-1])) == 5
    for one, other in zip(results(gradient, *drawn, "zeros", compiled), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@xla_only
def test_nan_reads_nan_and_harms_no_other(gradient):
    images, at, weights = draw((2, 6, 7, 1), (6, 4))
    expected = results(gradient, images, at, weights, "zeros")
    at[0][1, 2, 3] = np.nan
    weights[1, 2, 3] = 0  # the gradient to the image is NaN otherwise, as it should be
    found = results(gradient, images, at, weights, "zeros")
    assert np.isnan(found[0][1, 2, 3]).all()
    at[0][1, 2, 3] = 0
    np.testing.assert_array_equal(found[0][0], expected[0][0])
    np.testing.assert_array_equal(found[1][0], expected[1][0])


def test_gradients_are_the_same_bit_by_bit(gradient):
    """All points of an image read the same few pixels: sums in another order would differ."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 5, 4, 3)).astype("float32")
    params = np.tile(np.float32([0.2, 0.01, 0.1, 0.02, 0.1, 0.0]), (8, 1))
    weights = rng.normal(size=(8, 60, 60, 3)).astype("float32")

    def scalar(images):
        options = {"output_size": 60, "data_format": "channels_last"}
        return ops.sum(stn.warp(images, params, **options) * ops.array(weights))

    first, *others = (gradient(scalar, images) for _ in range(4))
    assert np.abs(first).max() > 50
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX can say what it keeps")
def test_nothing_is_kept_but_the_points():
    """No tensor of points times neighbors times channels waits for the gradient."""
    import jax

    images = np.zeros((4, 16, 16, 8), "float32")
    params = np.tile(np.eye(2, 3, dtype="float32").reshape(1, 6), (4, 1))
    _, back = jax.vjp(stn.warp, images, params)
    kept = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(back))
    assert kept < 2 * images.nbytes


@pytest.mark.skipif(BACKEND != "jax", reason="JAX says who asks for which gradient")
def test_only_what_is_asked_for_is_computed(monkeypatch):
    """Without a gradient to the image there is no scatter, and none to the points without that."""
    import jax

    images, at, _ = draw((2, 6, 7, 1), (6, 4))
    operations = lambda function, *given: str(jax.make_jaxpr(function)(*given))  # noqa: E731
    read = lambda images, *at: ops.sum(bilinear.read(images, list(at)))  # noqa: E731
    assert "scatter" in operations(jax.grad(read), images, *at)
    assert "scatter" not in operations(jax.grad(read, argnums=(1, 2)), images, *at)
    calls = []
    monkeypatch.setattr(bilinear, "_point_gradients", lambda *_: calls.append(1))
    operations(jax.grad(read), images, *at)
    assert not calls


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has such a kernel")
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(6, 7), (4, 3, 5)])
def test_pytorchs_own_kernel(size, padding, align_corners, gradient, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *size, 2)).astype("float32")
    family = stn.get_transform("affine", dimensions=len(size))
    params = (family.identity + 0.3 * rng.normal(size=(3, family.size))).astype("float32")
    weights = rng.normal(size=images.shape).astype("float32")
    calls, read_natively = [], bilinear.read_natively

    def watched(*arguments):
        calls.append(read_natively(*arguments) is not None)
        return read_natively(*arguments)

    def both(images, params):
        def scalar(images, params):
            options = {"padding": padding, "align_corners": align_corners}
            return ops.sum(stn.warp(images, params, family, **options) * ops.array(weights))

        return [
            gradient(lambda value: scalar(value, ops.convert_to_tensor(params)), images),
            gradient(lambda value: scalar(ops.convert_to_tensor(images), value), params),
        ]

    monkeypatch.setattr(bilinear, "read_natively", watched)
    found = both(images, params)
    assert calls and all(calls)
    still = params.copy()
    still[1] = family.identity  # one image at the identity: all are read in the exact way
    both(images, still)
    assert not calls[-1]
    still[1] = params[1]
    still[1, -1] = np.nan  # the last axis only
    read = ops.convert_to_numpy(stn.warp(images, still, family, padding=padding))
    assert np.isnan(read[1]).all()
    assert np.isfinite(read[[0, 2]]).all()
    monkeypatch.setattr(bilinear, "read_natively", lambda *_: None)
    for one, other in zip(found, both(images, params), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch wants points side by side")
def test_points_that_lie_side_by_side_are_not_copied():
    import torch

    points = torch.arange(24.0).reshape(2, 6, 2)
    x, y = (column.reshape(2, 3, 2) for column in points.unbind(-1))
    found = bilinear._side_by_side([x, y])
    assert found.data_ptr() == points.data_ptr()
    np.testing.assert_array_equal(found, points.reshape(2, 3, 2, 2))
    for columns in ([y, x], [x, x], [x[:1], y[:1]], [x.clone(), y]):
        np.testing.assert_array_equal(bilinear._side_by_side(columns), torch.stack(columns, -1))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_point_in_the_middle_that_is_no_number(padding, bad):
    images = np.random.default_rng(0).uniform(size=(1, 21, 21, 1)).astype("float32")
    params = np.full((1, 98), 0.01, "float32")
    params[0, 48] = bad
    family = stn.Flow(7)
    points = family(params, stn.grids.regular((21, 21))[None].astype("float32"))
    found = ops.convert_to_numpy(stn.warp(images, params, family, padding=padding))
    expected = ops.convert_to_numpy(stn.sample(images, points, padding=padding))
    assert np.isnan(expected).any() or np.isposinf(bad)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="is about PyTorch")
def test_vmap_of_pytorch():
    import torch

    images = torch.rand(3, 6, 5, 2)
    params = torch.tensor([[0.9, 0.1, 0.05, -0.1, 0.9, 0.0]]).repeat(3, 1)
    each = torch.func.vmap(lambda image, one: stn.warp(image[None], one[None])[0])
    torch.testing.assert_close(each(images, params), stn.warp(images, params))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is about TensorFlow's graphs")
@pytest.mark.parametrize("channels", [1, bilinear.FEW + 1])
def test_gradients_of_gradients_in_a_graph(channels):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(size=(2, 6, 5, channels)), "float32")
    params = tf.constant(rng.normal([1, 0, 0, 0, 1, 0], 0.1, (2, 6)), "float32")

    def penalty(images, params):
        with tf.GradientTape() as outer:
            outer.watch([images, params])
            with tf.GradientTape() as inner:
                inner.watch([images, params])
                energy = tf.reduce_sum(stn.warp(images, params) ** 2)
            gradients = inner.gradient(energy, [images, params])
            total = sum(tf.reduce_sum(gradient**2) for gradient in gradients)
        return outer.gradient(total, [images, params])

    eager = penalty(images, params)
    for found, expected in zip(tf.function(penalty)(images, params), eager, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is about TensorFlow's graphs")
def test_a_batch_that_is_known_too_late_is_not_read_past_its_end():
    import tensorflow as tf

    signature = [tf.TensorSpec((None, 6, 5, 1)), tf.TensorSpec((None, 6))]
    warp = tf.function(lambda images, params: stn.warp(images, params), signature)
    params = tf.tile([[1.0, 0.0, 0.1, 0.0, 1.0, 0.0]], (4, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Incompatible shapes"):
        warp(tf.ones((2, 6, 5, 1)), params)
