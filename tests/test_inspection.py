"""Looking at single images: the wall of a run, `stn.inspect`, and runs beside each other."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import stn
from conftest import draw_shapes
from stn.tool import comparison, pictures, runs, walls
from stn.tool.config import UserError

# --- which images --------------------------------------------------------------------------------


def test_examples_cover_the_classes_and_depend_on_the_seed_alone():
    labels = np.repeat(np.arange(10), 50)
    chosen = walls.one_of_each(labels, 12, (1, 5))
    assert set(labels[chosen]) == set(range(10))
    assert len(set(chosen.tolist())) == 12
    np.testing.assert_array_equal(chosen, walls.one_of_each(labels, 12, (1, 5)))
    assert chosen.tolist() != walls.one_of_each(labels, 12, (2, 5)).tolist()
    assert len(walls.one_of_each(labels[:3], 12, 0)) == 3


def test_worst_mistakes_are_those_the_model_was_surest_of():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.05, 0.95], [0.3, 0.7]])
    labels = np.array([0, 0, 0, 1, 0])
    assert walls.worst_mistakes(probabilities, labels, 2).tolist() == [2, 4]
    assert walls.worst_mistakes(probabilities, labels, 9).tolist() == [2, 4, 1]
    assert walls.worst_mistakes(probabilities, np.array([0, 1, 1, 1, 1]), 9).tolist() == []


def test_wall_of_a_trained_run(trained):
    """It agrees with what the run says of its test images."""
    run = trained.run
    some, worst = (walls.cards(run, worst=kind) for kind in (False, True))
    test = run.metrics["test"]
    wrong = test["count"] - round(test["accuracy"] * test["count"])
    assert len(some) == min(walls.COUNT, test["count"])
    assert len(worst) == min(walls.COUNT, wrong)
    assert sum(not card["right"] for card in some) == wrong, "all test images hang there"
    assert all(not card["right"] and card["true"] != card["guess"] for card in worst)
    percents = [int(card["percent"].rstrip("%")) for card in worst]
    assert percents == sorted(percents, reverse=True)
    assert all(card["words"] for card in some + worst)


def test_runs_from_before_there_was_a_wall_have_no_cards(tmp_path):
    assert walls.cards(runs.Run(tmp_path), worst=True) == []


# --- pictures ------------------------------------------------------------------------------------


def test_example_is_drawn_on_nothing():
    image = np.full((28, 28, 1), 255, "uint8")
    outline = np.array([[3, 3], [24, 3], [24, 24], [3, 24]])
    both = np.asarray(pictures.draw_example(image, image, outline))
    assert both[0, 0, 3] == 0
    assert (both[..., 3] == 255).mean() > 0.4
    orange = (np.abs(both[..., :3].astype(int) - pictures.OUTLINE).max(-1) < 40) & (
        both[..., 3] > 0
    )
    assert orange[:, : both.shape[1] // 2].sum() > 200
    assert orange[:, both.shape[1] // 2 :].sum() > 200
    plain = pictures.draw_example(image, None, None)
    assert plain.size == (84, 84)
    assert pictures.draw_example(image, None, None, factor=2).size == (168, 168)


@pytest.mark.parametrize("classes", [1, 5])
def test_inspection_has_room_for_everything(classes):
    image = np.zeros((20, 40, 3))
    named = [("a very long name of a class " * 3, 1 / classes)] * classes
    outline = np.array([[-9, -9], [50, 0], [50, 30], [0, 30]])
    picture = pictures.draw_inspection(
        image, image, outline, [outline], title="t" * 100, words="turned", classes=named
    )
    assert picture.mode == "RGB"
    assert picture.width > 900, "the title is not cut off"
    edges = np.asarray(picture)
    assert (
        (edges[:, :8] == 255).all() and (edges[-8:] == 255).all() and (edges[:, -8:] == 255).all()
    )


# --- inspect -------------------------------------------------------------------------------------


@pytest.fixture
def digit(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(draw_shapes(1, 5)[0][2]).save(path)
    return path


def test_inspect_agrees_with_predict(trained, digit, tmp_path):
    found = stn.inspect(trained.run, digit, out=tmp_path / "a.png")
    (predicted,) = stn.predict(trained.run, digit)
    best = found["classes"][0]
    assert best["class"] == predicted["class"]
    assert best["probability"] == pytest.approx(predicted["probability"], abs=1e-5)
    probabilities = [one["probability"] for one in found["classes"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert (found["image"], found["transform"]) == (str(digit), "affine")
    assert len(found["params"]) == 6
    assert {"angle", "zoom_x", "right"} <= set(found["about"])
    assert found["words"]
    json.dumps(found)
    with Image.open(found["picture"]) as picture:
        assert picture.width > 3 * 84


def test_inspect_writes_nothing_unless_asked(trained, digit, monkeypatch):
    monkeypatch.chdir(digit.parent)
    assert "picture" not in stn.inspect(trained.run.model_file, digit.name)
    assert [path.name for path in digit.parent.iterdir()] == ["digit.png"]


def test_inspect_takes_the_first_frame(trained, digit):
    frames = [Image.fromarray(image) for image in draw_shapes(1, 5)[0]]
    animation = digit.with_suffix(".gif")
    frames[2].save(animation, save_all=True, append_images=frames[:1])
    found = stn.inspect(trained.run, animation)
    assert found["image"] == f"{animation}#0"
    assert found["classes"][0]["class"] == stn.predict(trained.run, digit)[0]["class"]


def test_inspect_what_is_not_an_image(trained, digit, tmp_path):
    with pytest.raises(UserError, match=r"Expected an image file\. Received: .*, a folder"):
        stn.inspect(trained.run, tmp_path)
    with pytest.raises(UserError, match="which is missing"):
        stn.inspect(trained.run, tmp_path / "none.png")
    with pytest.raises(UserError, match="Expected a file to write"):
        stn.inspect(trained.run, digit, out=tmp_path)


# --- compare -------------------------------------------------------------------------------------


@pytest.fixture
def other(trained, tmp_path):
    """A copy of the run that says other things of some of the test images."""
    run = runs.Run(tmp_path / "other")
    shutil.copytree(trained.run.path, run.path)
    config = trained.run.config.replace(epochs=9, distort="RTS")
    runs.write_text(run.config_file, config.to_toml())
    with np.load(run.wall_file) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays["guesses"] = arrays["labels"].copy()
    with runs.atomic(run.wall_file) as temporary:
        np.savez(temporary, **arrays)
    metrics = run.metrics
    metrics["test"]["accuracy"] = 1.0
    runs.write_json(run.metrics_file, metrics)
    return run


def test_compare(trained, other, tmp_path):
    results = stn.compare([trained.run, other.path], out=tmp_path / "page.html")
    assert [one["accuracy"] for one in results["runs"]] == [trained.run.metrics["accuracy"], 1.0]
    assert [one["name"] for one in results["runs"]] == ["trained", "other"]
    assert results["differences"] == {"epochs": [4, 9]}
    first = results["runs"][0]
    congealing = trained.run.metrics["congealing"]
    change = [congealing[key]["within_class_variance"] for key in ("inputs", "outputs")]
    assert first["variance"] == pytest.approx(change[1] / change[0] - 1)
    assert first["sharpness"] == congealing["outputs"]["sharpness"]
    assert first["parameters"] == trained.run.metrics["parameters"]
    assert first["alignment_error"] == trained.run.metrics["alignment"]["alignment_error"]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert text.count("taken for") > 0
    # One of the two is right where they disagree, and these come first.
    rows = comparison._wall([trained.run, other])
    disagree = [len({card["right"] for card in row["cards"]}) == 2 for row in rows]
    assert disagree == sorted(disagree, reverse=True)
    assert disagree[0]
    assert all(row["cards"][0]["index"] == row["cards"][1]["index"] for row in rows)


def test_compare_runs_on_other_data(trained, other, tmp_path):
    runs.write_text(other.config_file, trained.run.config.replace(distort="R").to_toml())
    assert comparison._wall([trained.run, other])
    both = [trained.run, other]
    assert not comparison._page(both, stn.compare(both, out=tmp_path / "a.html"))["comparable"]
    runs.write_text(other.config_file, trained.run.config.replace(seed=1).to_toml())
    assert not comparison._wall([trained.run, other]), "their test images may be others"


@pytest.mark.parametrize("what", ["count", "task"])
def test_compare_runs_on_other_images_of_the_same_data(what, trained, other, tmp_path):
    run = runs.Run(shutil.copytree(other.path, tmp_path / "elsewhere"))
    if what == "task":
        runs.write_text(run.config_file, run.config.replace(task="addition").to_toml())
    else:
        test = run.metrics["test"]
        metrics = run.metrics | {"test": test | {"count": test["count"] - 1}}
        runs.write_json(run.metrics_file, metrics)
    page = tmp_path / "page.html"
    [note] = stn.compare([trained.run, run.path], out=page)["notes"]
    assert note == "No test images side by side: the runs do not have the same ones"
    assert "Those first" not in page.read_text(encoding="utf-8")


def test_compare_a_run_that_is_not_finished(trained, tmp_path):
    run = runs.Run(tmp_path / "begun")
    run.path.mkdir()
    for file in ("config.toml", "environment.json", "history.json"):
        shutil.copy(trained.run.path / file, run.path)
    begun = stn.compare([trained.run, run], out=tmp_path / "page.html")["runs"][1]
    assert not begun["finished"]
    assert begun["accuracy"] is None
    metrics = trained.run.metrics
    assert begun["validation_accuracy"] == metrics["validation"]["accuracy"]
    seconds = [record["seconds"] for record in run.history]
    assert begun["train_seconds"] == pytest.approx(sum(seconds))
    assert "(not finished)" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_compare_says_what_is_left_out(trained, other, tmp_path):
    page = tmp_path / "page.html"
    assert stn.compare([trained.run, other], out=page)["notes"] == []
    begun = runs.Run(tmp_path / "begun")
    begun.path.mkdir()
    for file in ("config.toml", "environment.json"):
        shutil.copy(trained.run.path / file, begun.path)
    compared = [begun, trained.run, other]
    [note] = stn.compare(compared, out=page)["notes"]
    assert note.startswith("No test images of begun: its training has not finished; `stn train --r")
    text = page.read_text(encoding="utf-8")
    assert "No test images of begun" in text
    shown = text[text.index('id="wall"') :]
    assert shown.index("trained</p>") < shown.index("other</p>"), "the others are shown"
    assert "begun</p>" not in shown
    other.wall_file.unlink()
    notes = stn.compare(compared, out=page)["notes"]
    assert notes[1] == "No test images of other: there is no wall.npz in its folder"
    assert "Those first" not in page.read_text(encoding="utf-8")


def test_names_of_runs_are_told_apart(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    names = comparison._distinct(paths)
    assert names == ["a/run", "b/run", f"{tmp_path.name}/c"]
    assert comparison._distinct([tmp_path, tmp_path])[0] != comparison._distinct([tmp_path] * 2)[1]


def test_compare_mistakes(trained, tmp_path):
    with pytest.raises(UserError, match=r"Expected two runs or more\. Received: 1"):
        stn.compare([trained.run], out=tmp_path / "page.html")
    with pytest.raises(UserError, match="which does not exist"):
        stn.compare([trained.run, tmp_path / "none"], out=tmp_path / "page.html")
    with pytest.raises(UserError, match="Expected a file to write"):
        stn.compare([trained.run, trained.run], out=tmp_path)
    assert not list(tmp_path.iterdir())
