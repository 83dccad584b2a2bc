"""Reading along one axis after the other, against the same point by point."""

import itertools

import numpy as np
import pytest
from keras import ops

import stn
from stn import samplers, separable

SAMPLERS = ("bilinear", "bicubic", "lanczos3")
OTHERS = [("translation", 2), ("scaling", 2), ("translation", 3), ("attention", 3)]
# One case on further backends: JAX takes a quarter of a minute for each.
CASES = [
    pytest.param(s, p, marks=() if (s, p) == ("bicubic", "constant") else pytest.mark.once)
    for s, p in itertools.product(SAMPLERS, samplers.PADDINGS)
]
SIZES = {2: (7, 9), 3: (4, 6, 5)}


def draw(family, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(3, *SIZES[family.dimensions], channels)).astype("float32")
    params = (family.identity + 0.4 * rng.normal(size=(3, family.size))).astype("float32")
    return images, params


@pytest.fixture
def by_points(monkeypatch):
    """Call a function as if products never paid."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(separable, "pays", lambda *_: False)
            return function(*arguments)

    return call


@pytest.fixture
def by_products(monkeypatch):
    """Call a function, and make sure that products were taken."""

    def call(function, *arguments):
        calls, read = [], separable.read
        with monkeypatch.context() as patch:
            patch.setattr(separable, "read", lambda *given: calls.append(1) or read(*given))
            patch.setattr(stn.bilinear, "suits", lambda *_: False)
            patch.setattr(stn.bilinear, "read_natively", lambda *_: None)
            found = function(*arguments)
        assert calls
        return found

    return call


@pytest.mark.parametrize(("sampler", "padding"), CASES)
def test_products_read_what_points_read(sampler, padding, by_points, by_products, gradient):
    family = stn.get_transform("attention")
    check_products(family, sampler, padding, by_points, by_products, gradient)


@pytest.mark.once
@pytest.mark.parametrize(("name", "dimensions"), OTHERS)
def test_products_of_every_family(name, dimensions, by_points, by_products, gradient):
    family = stn.get_transform(name, dimensions=dimensions)
    check_products(family, "bicubic", "zeros", by_points, by_products, gradient)


def check_products(family, sampler, padding, by_points, by_products, gradient):
    """Values, and the gradients to images and parameters."""
    images, params = draw(family)
    fill = {"fill_value": [0.5, -2.0]} if padding in ("constant", "inward") else {}
    output_size = tuple(n + 1 for n in SIZES[family.dimensions])
    weights = np.random.default_rng(1).normal(size=(3, *output_size, 2)).astype("float32")

    def warp(images, params):
        options = {"sampler": sampler, "padding": padding, "output_size": output_size, **fill}
        return stn.warp(images, params, family, data_format="channels_last", **options)

    def all_of_it():
        loss = lambda images, params: ops.sum(warp(images, params) * ops.array(weights))  # noqa: E731
        return [
            ops.convert_to_numpy(warp(images, params)),
            gradient(lambda value: loss(value, ops.convert_to_tensor(params)), images),
            gradient(lambda value: loss(ops.convert_to_tensor(images), value), params),
        ]

    found, expected = by_products(all_of_it), by_points(all_of_it)
    for one, other, tolerance in zip(found, expected, (2e-5, 2e-5, 1e-3), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_identity_is_exact(sampler, by_products):
    family = stn.get_transform("scaling")
    images, _ = draw(family)
    params = np.tile(np.float32(family.identity), (3, 1))
    found = by_products(lambda: stn.warp(images, params, family, sampler=sampler))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), images)


def test_float64_stays_float64(by_points, by_products):
    family = stn.get_transform("attention")
    images, params = (tensor.astype("float64") for tensor in draw(family))
    warp = lambda: ops.convert_to_numpy(stn.warp(images, params, family))  # noqa: E731
    found = by_products(warp)
    # JAX has float64 only where it is switched on.
    assert found.dtype == ops.convert_to_numpy(ops.convert_to_tensor(images)).dtype
    np.testing.assert_allclose(found, by_points(warp), rtol=0, atol=1e-6)


def test_who_stays_aligned():
    aligned = {name for name, family in stn.TRANSFORMS.items() if family.aligned}
    assert aligned == {"translation", "attention", "scaling"}
    assert stn.Composition(["attention", "translation"]).aligned
    assert not stn.Composition(["attention", "rotation"]).aligned


def test_when_it_pays():
    assert separable.pays((224, 224), 6) and separable.pays((28, 28), 4)
    assert not separable.pays((28, 28), 1)  # the nearest pixel
    assert not separable.pays((28, 4000), 6)
