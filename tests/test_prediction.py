"""What a model is shown of images it is given, and what it says about them."""

import io
import itertools
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import stn
from conftest import Brightness
from stn.tool import evaluation, prediction, runs
from stn.tool.config import Config, UserError

# --- what a model is shown -----------------------------------------------------------------------


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A run of 14x14 images on 21x21, without a model of its own."""

    def make(*, canvas=21, channels=1, size=14, background="dark", background_color=None, **config):
        run = runs.Run(tmp_path / "run")
        runs.write_text(run.config_file, Config(**config).to_toml())
        runs.write_json(run.environment_file, {"format": runs.FORMAT})
        about = {"class_names": ["dark", "light"], "image_shape": [size, size, channels]}
        about |= {"background": background, "background_color": background_color}
        runs.write_json(run.dataset_file, about | {"input_shape": [canvas, canvas, channels]})
        model = Brightness()
        monkeypatch.setattr(prediction, "load_model", lambda run, backend: model)
        return run, model

    return make


@pytest.fixture
def shown(tmp_path, untrained):
    """Save arrays as image files, let a run predict; what its model was shown."""

    def show(*arrays, **options):
        run, model = untrained(**options)
        paths = []
        for i, array in enumerate(arrays):
            paths.append(tmp_path / f"{i}.png")
            Image.fromarray(array).save(paths[-1])
        found = prediction.predict(run, paths)
        assert [record["image"] for record in found] == [str(path) for path in paths]
        assert all(set(record) == {"image", "class", "probability"} for record in found)
        return np.concatenate(model.batches)

    return show


def test_grey_image_is_put_in_the_middle_of_the_canvas(shown, digit):
    (seen,) = shown(digit)
    expected = np.zeros((21, 21, 1), "uint8")
    expected[3:17, 3:17, 0] = digit
    np.testing.assert_array_equal(seen, expected)


def test_inverted_colored_and_transparent_copies_look_the_same(shown, digit):
    transparent = np.zeros((14, 14, 4), "uint8")
    transparent[..., :3], transparent[..., 3] = 255, digit
    color = np.repeat(digit[..., None], 3, axis=2)
    seen = shown(digit, 255 - digit, color, 255 - color, transparent)
    for other in seen[1:]:
        np.testing.assert_array_equal(other, seen[0])


def test_larger_image_is_shrunk(shown, digit):
    seen = shown(digit, np.kron(digit, np.ones((4, 4), "uint8")))
    np.testing.assert_allclose(seen[1].astype(int), seen[0].astype(int), atol=60)
    assert seen[1].mean() == pytest.approx(seen[0].mean(), rel=0.15)


@pytest.mark.parametrize("turned", [False, True])
def test_aspect_ratio_is_kept(shown, turned):
    tall = np.zeros((56, 28), "uint8")
    tall[8:48, 10:18] = 255
    (seen,) = shown(tall.T if turned else tall)
    rows, columns = (seen[..., 0].max(axis=axis) > 127 for axis in (1, 0))
    assert (rows.sum(), columns.sum()) == ((2, 10) if turned else (10, 2))


def test_image_of_the_size_of_the_canvas_is_taken_as_it_is(shown):
    image = np.zeros((21, 21), "uint8")
    image[5, 18] = 255
    (seen,) = shown(image)
    np.testing.assert_array_equal(seen[..., 0], image)


def test_one_pixel_and_one_line(shown):
    seen = shown(np.zeros((1, 1), "uint8"), np.zeros((1, 50), "uint8"))
    assert seen.shape == (2, 21, 21, 1)
    assert seen.max() == 0


def test_color_model_sees_color(shown):
    red = np.zeros((14, 14, 3), "uint8")
    red[4:10, 4:10, 0] = 255
    grey = np.zeros((14, 14), "uint8")
    seen = shown(red, grey, canvas=14, channels=3)
    np.testing.assert_array_equal(seen[0], red)
    assert seen[1].shape == (14, 14, 3)


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (0, 0, 90), (255, 230, 120)])
def test_ink_on_a_transparent_background(shown, digit, ink):
    drawn = np.dstack([*(np.full_like(digit, value) for value in ink), digit])
    (seen,) = shown(drawn)
    expected = np.zeros((21, 21), "uint8")
    expected[3:17, 3:17] = digit
    np.testing.assert_allclose(seen[..., 0], expected, atol=3)


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (230, 60), (40, 200), (120, 180), (140, 20)])
def test_all_of_the_contrast_is_used(shown, digit, paper, ink):
    plain = paper + (digit / 255 * (ink - paper))
    noise = np.random.default_rng(0).uniform(-2, 2, digit.shape)
    seen = shown(digit, np.clip(plain + noise, 0, 255).astype("uint8"))
    np.testing.assert_allclose(seen[1].astype(int), seen[0].astype(int), atol=20)


def test_an_empty_page_stays_empty(shown):
    noise = np.random.default_rng(0).integers(0, 5, (14, 14), "uint8")
    assert shown(240 + noise, noise).max() < 50


def test_a_thin_frame_is_not_the_background(shown, digit):
    large = np.kron(255 - digit, np.ones((20, 20), "uint8"))
    framed = large.copy()
    framed[:2], framed[-2:], framed[:, :2], framed[:, -2:] = 0, 0, 0, 0
    plain, seen = shown(large, framed)[..., 0].astype(int)
    np.testing.assert_allclose(seen[4:16, 4:16], plain[4:16, 4:16], atol=50)


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (3, 1000), (400, 2)])
def test_extreme_lines_need_little_memory(shown, shape):
    tracemalloc.start()
    seen = shown(np.zeros(shape, "uint8"), canvas=14)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    assert seen.shape == (1, 14, 14, 1)


def test_images_of_the_users_own_are_shown_as_in_training(shown, digit):
    """Neither contrast nor, where training did not keep it, the aspect ratio is improved."""
    pale = digit // 3 + 20
    own = {"data": "folder:mine", "canvas": 14}
    np.testing.assert_array_equal(shown(pale, **own)[0, ..., 0], pale)
    np.testing.assert_array_equal(shown(255 - pale, **own)[0, ..., 0], pale)
    wide = np.kron(digit, np.ones((1, 4), "uint8"))
    assert shown(wide, **own)[0, :4].max() == 0
    squashed = shown(wide, image_size=14, **own)[0, ..., 0]
    np.testing.assert_allclose(squashed.astype(int), digit, atol=110)
    assert squashed[2:4].max() > 200


@pytest.mark.parametrize("canvas", [14, 21])
def test_a_grey_picture_for_a_model_that_sees_color(shown, digit, canvas):
    color = {"channels": 3, "image_size": 14, "canvas": canvas, "data": "folder:mine"}
    large = np.kron(digit, np.ones((2, 2), "uint8"))
    seen = shown(large, background="light", background_color=[250.0, 250.0, 240.0], **color)
    assert seen.shape == (1, canvas, canvas, 3)
    assert (seen[0, ..., 0] == seen[0, ..., 2]).any()


def test_a_photograph_is_not_a_negative(shown):
    dark = np.random.default_rng(0).integers(0, 90, (14, 14, 3)).astype("uint8")
    seen = shown(dark, channels=3, canvas=14, background="light", data="folder:mine")
    np.testing.assert_array_equal(seen[0], dark)


def test_photographs_of_ours_are_shown_as_in_training(shown, digit):
    pale = digit // 3 + 20
    seen = shown(pale, data="signs", canvas=14, background="mixed")
    np.testing.assert_array_equal(seen[0, ..., 0], pale)


def test_images_are_brought_to_the_background_of_training(shown, digit):
    mine = {"data": "folder:mine", "canvas": 14}
    for background, expected in (
        ("dark", [digit, digit]),
        ("light", [255 - digit, 255 - digit]),
        ("mixed", [digit, 255 - digit]),
    ):
        seen = shown(digit, 255 - digit, background=background, **mine)
        np.testing.assert_array_equal(seen[..., 0], expected)


def test_a_photograph_on_the_canvas_of_training(shown, digit):
    paper = np.where(digit > 0, 0, 200).astype("uint8")
    mine = {"data": "folder:mine", "canvas": 21}
    seen = shown(paper, background="light", background_color=[200.0], **mine)
    assert (seen[0, :3] == 200).all() and (seen[0, -3:] == 200).all()
    # As photographs are trained on: with black beyond them.
    assert not shown(paper, background="mixed", **mine)[0, :3].any()


# --- many images ---------------------------------------------------------------------------------


@pytest.mark.once
def test_three_thousand_images_need_the_memory_of_a_batch(untrained, tmp_path):
    run, model = untrained(canvas=64, size=64, channels=3)
    model.batches = Forgetful()
    Image.fromarray(np.eye(64, dtype="uint8") * 255).save(tmp_path / "a.png")
    results = prediction.predict_each(run, itertools.repeat(tmp_path / "a.png", 3000))
    tracemalloc.start()
    count = sum(result["class"] == "dark" for result in results)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert model.batches.sizes == {256}, "one size compiles once"
    assert peak < 4 * 256 * 64 * 64 * 3, "a third of all"


class Forgetful:
    """A list that keeps nothing but the sizes."""

    def __init__(self):
        self.sizes = set()

    def append(self, batch):
        self.sizes.add(len(batch))


def test_results_come_as_they_are_made(untrained, tmp_path):
    run, _ = untrained()
    Image.new("L", (14, 14)).save(tmp_path / "a.png")
    asked = []

    def paths():
        for i in range(1000):
            asked.append(i)
            yield tmp_path / "a.png"

    results = prediction.predict_each(run, paths())
    assert asked == []
    next(results)
    assert len(asked) == 256


def test_every_frame_is_a_result(untrained, tmp_path):
    frames = [Image.fromarray(np.full((14, 14), level, "uint8")) for level in (0, 1, 2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    found = prediction.predict(untrained()[0], tmp_path)
    names = ["a.gif#0", "a.gif#1", "a.gif#2", "b.png"]
    assert [record["image"] for record in found] == [str(tmp_path / name) for name in names]


def test_a_bad_file_raises_or_is_left_out(untrained, tmp_path):
    run, _ = untrained()
    Image.new("L", (14, 14)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"junk")
    paths = [tmp_path / name for name in ("a.png", "none.png", "b.png")]
    with pytest.raises(UserError, match=r"a\.png', which cannot be read as one"):
        prediction.predict(run, paths)
    errors = []
    (found,) = prediction.predict(run, paths, on_error=errors.append)
    assert found["image"] == str(tmp_path / "b.png")
    assert [str(path) in str(error) for path, error in zip(paths, errors, strict=False)] == [1, 1]


# --- a trained run -------------------------------------------------------------------------------


def test_no_images_have_no_classes(trained):
    assert stn.predict(trained.run, []) == []


def test_a_model_file_stands_for_its_run(trained, tmp_path):
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    Image.new("L", (14, 14)).save(tmp_path / "a.png")
    found = stn.predict(trained.run, tmp_path / "a.png")
    assert stn.predict(run.model_file, tmp_path / "a.png") == found
    shutil.copy(run.model_file, run.path / "other.keras")
    run.model_file.unlink()
    assert stn.predict(run.path / "other.keras", tmp_path / "a.png") == found
    shutil.copy(run.path / "other.keras", tmp_path / "lost.keras")
    for path, message in (
        (tmp_path / "lost.keras", r"lost\.keras', which is not in a run folder"),
        (run.path / "none.keras", "does not exist"),
        (run.config_file, r"config\.toml', another file"),
        (run.path, "finished no epoch"),
    ):
        with pytest.raises(UserError, match=message):
            stn.predict(path, tmp_path / "a.png")
    about = run.dataset | {"input_shape": [22, 22, 1]}
    runs.write_json(run.dataset_file, about)
    with pytest.raises(UserError, match=r"from \(22, 22, 1\).*other\.keras, from \(21, 21, 1\)"):
        stn.predict(run.path / "other.keras", tmp_path / "a.png")


# --- straightened images -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Images whose names would collide, in a folder with a sub-folder."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.bmp", "a-2.png", "more/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (14, 14), "uint8")).save(tmp_path / "in" / name)
    return tmp_path / "in"


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.once
def test_straightened_images(trained, folder, tmp_path):
    import keras

    found = stn.predict(trained.run, folder, save_straightened=tmp_path / "out")
    assert [(os.path.relpath(r["image"], folder), r["straightened"]) for r in found] == [
        ("a-2.png", str(tmp_path / "out/a-2.png")),
        ("a.bmp", str(tmp_path / "out/a.png")),
        ("a.png", str(tmp_path / "out/a-3.png")),
        ("more/a.png", str(tmp_path / "out/more/a.png")),
    ]
    assert len(files(tmp_path / "out")) == 4
    plain = stn.predict(trained.run, folder)
    for record, other in zip(found, plain, strict=True):
        assert record["class"] == other["class"]
        assert record["probability"] == pytest.approx(other["probability"], abs=1e-5)

    model = evaluation.load_model(trained.run, None)
    run = trained.run
    inputs = prediction._read_inputs([folder / "a.png"], run, leave_out=None, on_error=print)
    ((_, _, image),) = inputs
    seen = keras.ops.convert_to_numpy(stn.probe(model)(image[None])["images"])[0]
    with Image.open(tmp_path / "out" / "a-3.png") as picture:
        assert (picture.mode, picture.size) == ("L", (14, 14))
        np.testing.assert_allclose(np.asarray(picture), seen[..., 0] * 255, atol=1)


def test_straightened_images_of_the_same_run_are_replaced_and_no_others(trained, folder, tmp_path):
    out = tmp_path / "out"
    stn.predict(trained.run, folder, save_straightened=out)
    before = files(out)
    stn.predict(trained.run, folder, save_straightened=out)
    assert files(out) == before
    (out / "a.png").write_bytes(b"mine")
    other = runs.Run(tmp_path / "other")
    shutil.copytree(trained.run.path, other.path)
    found = stn.predict(other, folder / "a.bmp", save_straightened=out)
    assert found[0]["straightened"] == str(out / "a-4.png")
    assert files(out) == before | {"a.png": b"mine", "a-4.png": (out / "a-4.png").read_bytes()}
    assert stn.predict(other, folder / "a.bmp", save_straightened=out) == found


def test_what_was_straightened_is_no_input(trained, folder):
    for _ in range(2):
        found = stn.predict(trained.run, folder, save_straightened=folder / "out")
        assert len(found) == 4
    assert len(files(folder / "out")) == 4


def test_ten_thousand_files_of_one_name(trained, tmp_path):
    """No search through all the numbers for each of them."""
    straightened = prediction._Straightened(trained.run, tmp_path / "out")
    asked = []
    original = prediction.read_mark
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "read_mark", lambda path: asked.append(path) or original(path))
        for i in range(40):
            straightened.save(np.zeros((3, 3, 1)), "a", f"{i}/a.png")
    assert len(files(tmp_path / "out")) == 40
    assert len(asked) < 80


def test_frames_and_standard_input_are_straightened_too(trained, tmp_path, monkeypatch):
    frames = [Image.fromarray(np.full((14, 14), level, "uint8")) for level in (0, 1)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    stream = io.BytesIO()
    frames[0].save(stream, "PNG")
    stream.seek(0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
    found = stn.predict(trained.run, [tmp_path / "a.gif", "-"], save_straightened=tmp_path / "out")
    assert set(files(tmp_path / "out")) == {"a#0.png", "a#1.png", "stdin.png"}
    assert found[2]["image"] == "-"


def test_nowhere_to_write_and_nothing_to_straighten(trained, folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"Expected a folder to write to. Received: .*out'"):
        stn.predict(trained.run, folder, save_straightened=tmp_path / "out")
    run = runs.Run(tmp_path / "run")
    shutil.copytree(trained.run.path, run.path)
    runs.write_text(run.config_file, run.config.replace(transform="none").to_toml())
    with pytest.raises(UserError, match=r"a run with a transformer.*--transform none"):
        stn.predict(run, folder, save_straightened=tmp_path / "new")
    assert not (tmp_path / "new").exists()
