"""Disturbances are what they say, and the alignment error is what is left of them."""

import csv
import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import stn
from stn.tool import examples, learning, sweeps
from stn.tool.config import UserError

pytestmark = pytest.mark.once

LETTER = np.zeros((1, 12, 12, 1), "uint8")
LETTER[0, 2:10, 3:5] = LETTER[0, 2:4, 3:9] = 200


def disturb(kind, strength, output_size=(12, 12), seed=0, images=LETTER):
    rng = np.random.default_rng(seed)
    return sweeps.disturb(images, kind, strength, output_size, rng)


def test_a_quarter_turn():
    turns = {disturb("rotation", 90, seed=seed)[0].tobytes() for seed in range(12)}
    expected = {np.rot90(LETTER, k, axes=(1, 2)).tobytes() for k in (1, 3)}
    assert turns == expected, "either way, and nothing else"


@pytest.mark.parametrize("kind", sweeps.KINDS)
def test_the_neutral_strength_changes_nothing(kind):
    found, back = disturb(kind, sweeps.KINDS[kind][1], (16, 20))
    assert found.shape == (1, 16, 20, 1)
    np.testing.assert_array_equal(found[:, 2:14, 4:16], LETTER)
    assert found.sum() == LETTER.sum(), "in the middle of the canvas"
    np.testing.assert_allclose(back, np.eye(3)[None], atol=1e-12)


def test_the_strength_of_each_disturbance():
    images = np.repeat(LETTER, 50, axis=0)
    _, back = disturb("translation", 0.25, images=images)
    np.testing.assert_allclose(np.linalg.norm(back[:, :2, 2], axis=1), 3)  # of 12 pixels
    assert np.std(np.arctan2(back[:, 1, 2], back[:, 0, 2])) > 1, "in all directions"
    _, back = disturb("scale", 2.0)
    np.testing.assert_allclose(back[0], np.diag([0.5, 0.5, 1]))
    _, back = disturb("shear", 0.3, images=images)
    assert set(np.round(back[:, 0, 1], 6)) == {-0.3, 0.3}
    flat = np.full((20, 12, 12, 1), 128, "uint8")
    noisy, _ = disturb("noise", 0.1, images=flat)
    assert abs(noisy.std() - 25.5) < 1.5
    hidden, _ = disturb("occlusion", 0.5, images=flat)
    assert ((hidden == 0).sum(axis=(1, 2, 3)) == 36).all()
    rng = np.random.default_rng(0)
    hidden, _ = sweeps.disturb(flat, "occlusion", 0.5, (16, 16), rng, [255.0])
    assert set(np.unique(hidden)) == {128, 255}


@pytest.fixture(scope="module")
def pair(trained, tmp_path_factory):
    """A run whose transformer does nothing, and one that was trained."""
    folder = tmp_path_factory.mktemp("sweeps")
    paths = [folder / "idle", folder / "trained"]
    for path in paths:
        shutil.copytree(trained.run.path, path)
    idle = stn.Run(paths[0])
    model = keras.saving.load_model(idle.model_file, compile=False)
    for weight in model.get_layer("stn").head.weights:
        weight.assign(np.zeros(weight.shape))
    model.save(idle.model_file)
    return paths


@pytest.fixture(scope="module")
def control(trained, tmp_path_factory):
    """A run like that of `trained`, without a transformer; it has learned nothing."""
    path = tmp_path_factory.mktemp("controls") / "plain"
    shutil.copytree(trained.run.path, path)
    run = stn.Run(path)
    config = run.config.replace(transform="none")
    run.config_file.write_text(config.to_toml(), encoding="utf-8")
    shape, names = run.dataset["input_shape"], run.dataset["class_names"]
    learning.build(config, tuple(shape), len(names), steps=1).save(run.model_file)
    return path


@pytest.mark.parametrize("kind", ["rotation", "translation", "scale"])
def test_a_transformer_that_does_nothing_leaves_all_of_it(pair, kind):
    strengths = {"rotation": [0, 20, 45], "translation": [0, 0.1], "scale": [0.5, 1]}[kind]
    results = sweeps.sweep(pair[0], kind, strengths=strengths)
    left = [point["alignment_error"] for point in results["runs"][0]["points"]]
    expected = [2.0, 1.0] if kind == "scale" else strengths
    np.testing.assert_allclose(left, expected, rtol=1e-3, atol=1e-3)


def test_turns_of_the_own_distortion(pair):
    """Ignored, all of them are left; what the map of images says is what they were turned by."""
    config = stn.Run(pair[0]).config
    model = keras.saving.load_model(stn.Run(pair[0]).model_file, compile=False)
    probe = examples.Probe(model, config.transform)
    images = np.repeat(LETTER[:, :, :, :], 400, axis=0)
    images = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = sweeps.turns_left_over(probe, config, images)
    assert found["turned"] == pytest.approx(22.5, abs=3)  # half of at most 45 degrees
    assert found["alignment_error"] == pytest.approx(found["turned"], abs=0.01)
    assert found["alignment_error_low"] <= found["turned"] <= found["alignment_error_high"]
    assert sweeps.turns_left_over(probe, config.replace(distort="T"), images) is None
    assert sweeps.turns_left_over(probe, config.replace(distort="P"), images) is None


def test_files_of_a_sweep(pair, control):
    results = sweeps.sweep(pair[1], "rotation", control=control, strengths=[0, 40], count=15)
    assert results["count"] == 15
    assert [run["name"] for run in results["runs"]] == ["trained", "plain"]
    for run in results["runs"]:
        for point in run["points"]:
            keys = ("accuracy", "alignment_error") if run["name"] == "trained" else ("accuracy",)
            for key in keys:
                assert point[f"{key}_low"] <= point[key] <= point[f"{key}_high"]
    again = sweeps.sweep(pair[1], "rotation", control=control, strengths=[0, 40], count=15)
    assert again == results, "fixed by the seed"
    file = stn.Run(pair[1]).sweep_file("rotation")
    assert json.loads(file.read_text()) == results
    rows = list(csv.DictReader(file.with_suffix(".csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["trained", "trained", "plain", "plain"]
    assert float(rows[1]["strength"]) == 40
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.size == (1800, 740)


def test_a_sweep_without_alignment(pair):
    results = sweeps.sweep(pair[1], "noise", strengths=[0.2])
    assert results["error_unit"] is None
    assert "alignment_error" not in results["runs"][0]["points"][0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(("blur",), "'blur'"), (("scale", [0.0]), r"\[0.0\]"), (("noise", []), r"\[\]")],
)
def test_errors(pair, arguments, match):
    kind, strengths = (*arguments, None)[:2]
    with pytest.raises(UserError, match=f"^Expected .* Received: {match}"):
        sweeps.sweep(pair[0], kind, strengths=strengths)


def test_a_run_with_a_transformer_is_no_control(pair):
    for wrong in pair:
        with pytest.raises(UserError, match=r"^Expected as control .* with transform='affine'"):
            sweeps.sweep(pair[1], "noise", control=wrong, strengths=[0.0])


def test_a_control_of_another_backend_is_read_on_that_of_the_run(pair, control, tmp_path):
    path = tmp_path / "other"
    shutil.copytree(control, path)
    run = stn.Run(path)
    other = "jax" if run.config.backend != "jax" else "torch"
    run.config_file.write_text(run.config.replace(backend=other).to_toml(), encoding="utf-8")
    results = sweeps.sweep(pair[1], "noise", control=path, strengths=[0.0])
    assert len(results["runs"]) == 2


def test_command(pair, control):
    from typer.testing import CliRunner

    from stn.tool.cli import app

    arguments = ["evaluate", str(pair[1]), "--sweep", "shear", "--control", str(control)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert {"shear", "trained:", "plain:", "(tangent)"} <= set(shown.stdout.split())
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["kind"] == "shear"
    for wrong in (["--control", str(control)], ["--sweep", "noise", "--distort", "R"]):
        failed = CliRunner().invoke(app, ["evaluate", str(pair[1]), *wrong])
        assert isinstance(failed.exception, UserError)
