"""Alarms are raised by what is wrong with sampling grids, and by nothing else."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import stn
from stn import grids
from stn.tool import alarms
from stn.tool.config import Config

IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])
CONFIG = Config(distort="RTS")


def points(theta):
    """The sampling points of affine maps `(count, 2, 3)`."""
    regular = grids.regular((12, 12))
    grid = np.concatenate([regular, np.ones((12, 12, 1))], axis=-1)
    return np.einsum("nij,hwj->nhwi", theta, grid)


def turned(*degrees, zoom=1.0, shift=0.0):
    angle = np.deg2rad(degrees)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    none = np.zeros_like(angle)
    rows = [np.stack([cos, -sin, none + shift], -1), np.stack([sin, cos, none], -1)]
    return points(np.stack(rows, axis=1))


def names(grid, epoch=5, config=CONFIG, **others):
    record = {"epoch": epoch, "val_accuracy": 0.9, "luck": 0.1, **others}
    return list(alarms.raised(record | alarms.measure(grid), config))


HEALTHY = turned(-40, -20, 0, 20, 40)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (HEALTHY, []),
        (turned(-40, 40, zoom=0.6), []),
        (turned(-40, 40, zoom=0.05), ["collapsed"]),
        (turned(-40, 40, zoom=0.0), ["collapsed", "all alike"]),
        (turned(-40, 40, shift=1.2), ["outside"]),
        (turned(-40, 40, zoom=2), ["outside", "zoomed out"]),
        (turned(30, 30, 30, 30), ["all alike"]),
        (turned(0, 0, 0, 0), ["not moved"]),
        (np.full((3, 12, 12, 2), np.nan), ["not finite"]),
        (np.concatenate([HEALTHY, np.full((1, 12, 12, 2), np.inf)]), ["not finite"]),
    ],
)
def test_alarms_of_made_up_grids(grid, expected):
    assert names(grid) == expected


def test_the_identity_is_no_alarm_at_first_nor_where_it_may_be_right():
    identity = points(np.tile(IDENTITY, (8, 1, 1)))
    assert names(identity, epoch=1) == []
    assert names(identity, epoch=9, config=Config(distort="none")) == []


def test_measures():
    found = alarms.measure(turned(-30, 30, zoom=0.5))
    assert found["sampled_area"] == pytest.approx(0.25)
    assert found["out_of_frame"] == 0
    half = alarms.measure(turned(0, shift=1.0))
    assert half["out_of_frame"] == pytest.approx(0.5)
    assert half["theta_moved"] == pytest.approx(0.5)
    assert half["theta_spread"] == 0


def test_the_rank_of_what_it_does():
    rng = np.random.default_rng(0)
    free = np.zeros((40, 2, 3)) + IDENTITY
    assert alarms.measure(points(free))["theta_rank"] == 0
    for rank, place in enumerate([(0, 2), (1, 2), (0, 0), (1, 1), (0, 1), (1, 0)], 1):
        free[:, place[0], place[1]] += rng.normal(0, 0.1, 40)
        assert alarms.measure(points(free))["theta_rank"] == rank
    one = alarms.measure(points(free[:1] + np.linspace(-0.2, 0.2, 9)[:, None, None] * IDENTITY))
    assert one["theta_rank"] == 1
    assert alarms.measure(points(free) * 1e-4)["theta_rank"] == 0


def test_accuracy_not_above_chance():
    assert names(HEALTHY, val_accuracy=0.09) == ["chance"]
    assert names(HEALTHY, val_accuracy=0.09, epoch=1) == []


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"saturated": 0.8}, ["at the bounds"]),
        ({"saturated": 0.3}, []),
        ({"localization_gradient": 1e-9, "classifier_gradient": 0.02}, ["no gradient"]),
        ({"localization_gradient": 0.0}, ["no gradient"]),
        ({"localization_gradient": 1e-5}, []),
    ],
)
def test_bounds_and_gradients(measured, expected):
    assert names(HEALTHY, **measured) == expected


def test_a_dead_localization_network_has_no_gradient():
    import keras

    from stn.tool import examples, learning

    config = Config(model="template", bounds={"angle": 0.1}, transform="rotation")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (16, 14, 14, 1)).astype("uint8")
    model = learning.build(config, (14, 14, 1), 4, steps=2)
    layer = model.get_layer("stn")
    normal = keras.layers.BatchNormalization
    shift = [part for part in layer.localization.layers if isinstance(part, normal)][-1].beta
    shift.assign(np.full(shift.shape, -1e3))  # ReLU: none ever fires
    layer.head.bias.assign([5.0])
    model.train_on_batch(images, np.arange(16) % 4)
    probe = examples.Probe(model, config.transform)
    found = alarms.Lookout(model, config, probe, images, np.arange(16) % 4).measure()
    assert found["localization_gradient"] == 0 < found["classifier_gradient"]
    assert found["saturated"] == 1
    assert {"at the bounds", "no gradient"} <= set(
        alarms.raised({"epoch": 5, **found}, config.replace(distort="R"))
    )


def test_what_alarms_watch_is_drawn_where_it_was_measured():
    from stn.tool import plots

    history = [{"epoch": e + 1, **alarms.measure(HEALTHY)} for e in range(3)]
    assert plots.draw_watched(history).startswith(b"\x89PNG")
    assert plots.draw_watched([{"epoch": 1, "loss": 2.0}]) is None
    drawn = [
        plots.draw_watched([{"epoch": 1, "localization_gradient": size} for size in sizes])
        for sizes in ((0.1, 0.1), (0.1, 0.0))
    ]
    assert drawn[0] != drawn[1]  # a gradient that is gone is seen
    for wrong in ({"theta_moved": 1e-6}, {"sampled_area": 1e5}, {"localization_gradient": 1e-30}):
        extreme = [{"epoch": 1, **wrong}, {"epoch": 2, **dict.fromkeys(wrong, 0.0)}]
        assert plots.draw_watched(extreme).startswith(b"\x89PNG")


def test_what_to_try_is_not_what_was_done():
    record = {"epoch": 5} | alarms.measure(turned(-40, 40, shift=1.2))
    assert "--padding inward" in alarms.raised(record, CONFIG)["outside"]
    assert "--padding" not in alarms.raised(record, CONFIG.replace(padding="inward"))["outside"]
    assert "--frame-penalty 1," in alarms.raised(record, CONFIG)["outside"]
    assert (
        "--frame-penalty 10," in alarms.raised(record, CONFIG.replace(frame_penalty=2))["outside"]
    )


@pytest.mark.parametrize("transform", ["affine", "projective", "tps", "flow", "diffeomorphic"])
def test_the_bounds_to_try_are_some_that_the_family_has(transform):
    record = {"epoch": 5} | alarms.measure(turned(-40, 40, zoom=0.05))
    text = alarms.raised(record, CONFIG.replace(transform=transform))["collapsed"]
    key, value = re.search("--bounds '(.*?)'", text)[1].split(" = ")
    stn.get_transform(transform).check_bounds({key: json.loads(value)})


@pytest.mark.parametrize("config", [{"hold_epochs": 4, "epochs": 9}, {"localization_rate": 0}])
def test_what_is_held_raises_no_alarm(config):
    identity = points(np.tile(IDENTITY, (8, 1, 1)))
    dead = {"localization_gradient": 0.0, "config": CONFIG.replace(**config)}
    assert names(identity, epoch=6, **dead) == []
    assert ("no gradient" in names(identity, epoch=7, **dead)) == ("hold_epochs" in config)


def test_the_worst_head_is_watched(monkeypatch):

    heads = {
        "identity": turned(0, 0, 0, 0),
        "point": turned(-40, -20, 20, 40, zoom=0.0),
        "healthy": turned(-40, -20, 20, 40),
    }

    def measured(*names):
        lookout = object.__new__(alarms.Lookout)
        parts = [(None, [(None, None, heads[name]) for name in names])]
        lookout._luck, lookout._images = 0.1, None
        lookout._probe = SimpleNamespace(parts=lambda images: parts)
        lookout._layer = SimpleNamespace(bounds=None)
        monkeypatch.setattr(lookout, "_gradients", dict)
        return {"epoch": 5} | lookout.measure()

    config = CONFIG.replace(heads=2)
    assert "collapsed" in alarms.raised(measured("healthy", "point"), config)
    assert "collapsed" in alarms.raised(measured("identity", "point"), config)
    assert list(alarms.raised(measured("healthy", "identity"), config)) == ["all alike"]
    assert list(alarms.raised(measured("healthy", "healthy"), config)) == []


def test_an_alarm_is_said_once_and_kept():
    wrong = {"luck": 0.1, "val_accuracy": 0.9} | alarms.measure(turned(-40, 40, zoom=0.05))
    fine = {"luck": 0.1, "val_accuracy": 0.9} | alarms.measure(HEALTHY)
    history = [{"epoch": 1} | wrong, {"epoch": 2} | wrong, {"epoch": 3} | fine]
    assert len(alarms.new(history[:1], CONFIG)) == 1
    assert alarms.new(history[:2], CONFIG) == alarms.new(history, CONFIG) == []
    (text,) = alarms.summarize(history, CONFIG)
    assert "almost a point" in text
    assert "(epochs 1 to 2, not since)" in text
    assert alarms.summarize(history[2:], CONFIG) == []
    assert alarms.summarize([{"epoch": 1, "val_accuracy": 0.1}], CONFIG) is None


def test_training_measures_after_every_epoch(trained):
    for record in trained.run.history:
        assert {"out_of_frame", "sampled_area", "theta_spread", "finite"} <= record.keys()
        assert record["finite"] == 1
    assert trained.run.history[-1]["theta_moved"] > 0
