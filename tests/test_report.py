"""The pictures, the film and the page of a run."""

from __future__ import annotations

import io
import json
import re
import string
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stn.tool import comparison, films, pictures, plots, report, runs, walls
from stn.tool.config import Config, UserError

pytestmark = pytest.mark.once

ORANGE = np.array(pictures.OUTLINE)


def images(count=16, size=28, channels=1, seed=0):
    """Strokes on black, as like digits as need be; uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    result = np.zeros((count, size, size, channels))
    for i in range(count):
        for _ in range(2):
            turn, a, b = rng.uniform(0, np.pi), *rng.uniform(0.35, 0.65, 2)
            along = (x - a) * np.cos(turn) + (y - b) * np.sin(turn)
            across = (x - b) * np.sin(turn) - (y - a) * np.cos(turn)
            stroke = np.exp(-((across / 0.06) ** 2)) * (np.abs(along) < 0.3)
            result[i] = np.maximum(result[i], stroke[..., None] * rng.uniform(0.7, 1, channels))
    return np.rint(result * 255).astype("uint8")


def square(low, high, count=1):
    return np.array([[[low, low], [high, low], [high, high], [low, high]]] * count, "float32")


def orange(picture, box=None):
    pixels = np.asarray(picture.crop(box) if box else picture).astype(int)
    return int((np.abs(pixels - ORANGE).max(axis=-1) < 40).sum())


def confusion(k):
    counts = np.random.default_rng(k).poisson(0.4, (k, k))
    np.fill_diagonal(counts, 30)
    return counts


def make_run(path, *, epochs=3, names=("a", "b"), finished=True, count=4, config=None):
    run = runs.Run(path)
    run.path.mkdir(parents=True)
    run.config_file.write_text((config or Config(epochs=epochs)).to_toml(), encoding="utf-8")
    environment = {"format": 1, "stn": "0.1.0", "memory_gib": 7.7, "command": "stn train --seed 0"}
    runs.write_json(run.environment_file, environment)
    run.summary_file.write_text("images (None, 28, 28, 1)\n", encoding="utf-8")
    history = []
    for epoch in range(epochs + 1):
        batch = images(count, seed=epoch)
        outline = square(epoch / 2, 27 - epoch / 2, count)
        title = f"Epoch {epoch} of {epochs}" if epoch else "Before training"
        picture = pictures.draw_frame(batch, batch, outline, title=title)
        with runs.atomic(run.frame_file(epoch)) as temporary:
            picture.save(temporary)
        if epoch:
            record = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
            record |= {"val_loss": 1.1 / epoch, "val_accuracy": 0.9 - 0.5 / epoch}
            history.append(record | {"seconds": 2.0, "images_per_second": 1500.0})
    runs.write_json(run.history_file, history)
    if finished:
        counts = confusion(len(names))
        accuracy = float(np.trace(counts) / counts.sum())
        per_class = {
            name: {"accuracy": float(row[i] / row.sum()), "count": int(row.sum())}
            for i, (name, row) in enumerate(zip(names, counts, strict=True))
        }
        test = {"count": int(counts.sum()), "loss": 0.1, "accuracy": accuracy}
        test |= {"per_class": per_class, "confusion": counts.tolist(), "class_names": list(names)}
        metrics = {"test": test, "best_epoch": epochs, "epochs": epochs, "parameters": 12345}
        metrics |= {"train": {"count": 60000}, "train_seconds": 192.0, "total_seconds": 200.0}
        runs.write_json(run.metrics_file, metrics)
        films.write_film(run.frames(), run.film_file)
        runs.write_bytes(run.curves_file, plots.draw_curves(history, kept_epoch=epochs))
        runs.write_bytes(run.confusion_file, plots.draw_confusion(counts, names))
    return run


class Page(HTMLParser):
    """Collects elements, and fails on tags that do not match."""

    VOID = ("meta", "img", "source", "input", "link", "br", "hr")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("names", [["_a", "_b"], ["a$\\frac$", "$x$"]])
def test_runs_of_any_name_are_in_the_legend(names, monkeypatch):
    seen = []
    original = plots._name_lines

    def watched(panel, **place):
        original(panel, **place)
        seen.append([text.get_text() for text in panel.get_legend().get_texts()])

    monkeypatch.setattr(plots, "_name_lines", watched)
    history = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.6}]
    plots.draw_comparison([history, history], names)
    points = [{"strength": 0.0, "accuracy": 0.9}, {"strength": 1.0, "accuracy": 0.5}]
    swept = {"kind": "noise", "unit": "sd", "error_unit": "", "title": "t"}
    plots.draw_sweep(swept | {"runs": [{"name": name, "points": points} for name in names]})
    assert seen == [names, names]


def test_every_distortion_is_put_in_words():
    from stn.tool.data.distortions import DISTORTIONS

    assert {*report._DISTORTIONS, "none"} == {*DISTORTIONS}


def opened(picture):
    return Image.open(io.BytesIO(picture))


def leftovers(folder):
    return [p.name for p in Path(folder).rglob("*") if p.name.startswith(".")]


# --- the monitor's picture ---


def test_frame_has_one_size_whatever_the_texts():
    batch = images(16)
    sizes = {
        pictures.draw_frame(batch, batch, square(0, 27, 16), title=t, subtitle=s, captions=c).size
        for t, s, c in [
            ("Epoch 1 of 12", "", ["✓ a"] * 16),
            ("Epoch 12 of 12", "affine", ["✗ a very long class name → another one"] * 16),
            ("Two\nlines", "of\ntext", ["a\nb"] * 16),
        ]
    }
    assert len(sizes) == 1


def test_frame_puts_the_outline_around_the_pixels():
    # Without the margins: the tile is 28 * 3 pixels, its card begins at 74, 76, its margin is 20.
    batch = np.zeros((1, 28, 28, 1), "uint8")
    picture = pictures.draw_frame(batch, None, square(6.5, 19.5), title="t")
    inner = (74 + 20, 76 + 20, 74 + 20 + 84, 76 + 20 + 84)
    ys, xs = np.nonzero(
        np.abs(np.asarray(picture.crop(inner)).astype(int) - ORANGE).max(axis=-1) < 40
    )
    edges = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    # The first corner carries a dot; the opposite one shows the bare line of 2 px around 60.
    np.testing.assert_allclose(edges[2:], 61, atol=1)
    assert np.all(edges[:2] < 20)


def test_frame_marks_the_first_corner():
    batch = np.zeros((1, 28, 28, 1), "uint8")
    turned = np.roll(square(4, 23), 1, axis=1)  # begins at the bottom left
    marked = pictures.draw_frame(batch, batch, turned, title="t")
    x, top, bottom = 94 + round(4.5 * 3), 96 + round(4.5 * 3), 96 + round(23.5 * 3)
    near = [orange(marked, (x - 6, y - 6, x + 7, y + 7)) for y in (top, bottom)]
    white = [np.asarray(marked.crop((x - 6, y - 6, x + 7, y + 7))).min(-1) for y in (top, bottom)]
    assert near[1] > 20
    assert (white[1] > 240).sum() > (white[0] > 240).sum()


def test_frame_draws_the_margin_and_nothing_beyond_it():
    batch = np.zeros((2, 28, 28, 1), "uint8")
    outline = np.concatenate([square(-3, 30), square(5, 20)])
    picture = pictures.draw_frame(batch, None, outline, title="t")
    assert orange(picture, (74, 76, 74 + 20, 76 + 124)) > 50  # left margin of the first card
    huge = np.concatenate([square(-1e30, 1e30), square(5, 20)])
    clipped = pictures.draw_frame(batch, None, huge, title="t")
    assert orange(clipped, (74, 76, 74 + 124, 76 + 124)) == 0
    gap = (74 + 124, 76, 74 + 124 + 8, 76 + 124)
    assert orange(picture, gap) == orange(clipped, gap) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -3e38])
@pytest.mark.parametrize("where", [0, 1, slice(None)])
def test_frame_survives_wild_outlines(value, where):
    batch = images(2)
    outline = square(3, 24, 2).astype("float64")
    outline[0, where] = value
    picture = pictures.draw_frame(batch, batch, outline, title="t")
    assert orange(picture, (74 + 132, 76, picture.width, 200)) > 100  # the second is not affected


def test_an_outline_that_leaves_the_margin_keeps_its_direction():
    # A line from the center to far right, along the row of the center.
    path = np.array([[13.5, 13.5], [1e12, 13.5], [1e12, 13.5], [13.5, 13.5]])
    strokes = pictures._strokes(path, -20.0, np.array([100.0, 100.0]))
    points = np.array([point for stroke in strokes for point in stroke])
    np.testing.assert_allclose(points[:, 1], 13.5, atol=1e-3)
    assert points[:, 0].max() == pytest.approx(100)


def test_lines_inside_the_outline_are_thin_and_open():
    batch = np.zeros((2, 28, 28, 1), "uint8")
    line = np.array([[[7, 14], [20, 14], [20, 20]], [[np.nan, 14], [1e30, 14], [20, 20]]])
    picture = pictures.draw_frame(batch, None, square(-9, -8, 2), title="t", lines=[line])

    def thickness(x, y, *, across):
        x, y = 94 + round((x + 0.5) * 3), 96 + round((y + 0.5) * 3)
        box = (x, y - 6, x + 1, y + 6) if across else (x - 6, y, x + 6, y + 1)
        return orange(picture, box)

    assert 1 <= thickness(10, 14, across=True) <= 2
    assert 1 <= thickness(20, 17, across=False) <= 2
    assert thickness(13.5, 17, across=False) == 0  # no way back from the last point to the first
    outlined = pictures.draw_frame(batch, None, line[:1].repeat(2, axis=0), title="t")
    assert orange(outlined, (94, 96, 178, 180)) > 2 * orange(picture, (94, 96, 178, 180))


def test_frame_without_transformer_says_so():
    batch = images(3)
    plain = pictures.draw_frame(batch, None, None, title="t", captions=["a"] * 3)
    assert orange(plain) == 0
    assert plain.height < pictures.draw_frame(batch, batch, None, title="t").height
    legend = pictures._legend(outlined=False, transformed=False)
    assert legend.width > pictures._font(12).getlength("no transformer")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((3, 40, 64, 3), (3, 28, 28, 1)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((2, 60, 60, 1), (2, 28, 28, 1)),
        ((2, 300, 20, 3), (2, 64, 64, 3)),
        ((2, 9, 9, 5), (2, 9, 9, 2)),
    ],
)
def test_frame_takes_any_shape(before, after):
    rng = np.random.default_rng(0)
    inputs, outputs = rng.random(before), rng.random(after).astype("float16")
    picture = pictures.draw_frame(inputs, outputs, square(0, 5, before[0]), title="t", columns=2)
    assert picture.mode == "RGB"
    assert orange(picture) > 100


def test_frame_shows_values_and_channels():
    red = np.zeros((1, 8, 8, 3))
    red[..., 0] = 2.0  # above the range
    red[:, :4] = np.nan  # shown as black
    picture = pictures.draw_frame(red, red.mean(-1, keepdims=True), None, title="t")
    width, height = pictures._fit(8, 8)
    assert (width, height) == (96, 96)
    x, y = 74 + 10, 76 + 10
    assert picture.getpixel((x + 50, y + 20)) == (0, 0, 0)
    assert picture.getpixel((x + 50, y + 80)) == (255, 0, 0)
    assert picture.getpixel((x + 50, y + 96 + 10 + 80)) == (170, 170, 170)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": np.zeros((2, 8, 8), "uint8")}, "shape"),
        ({"inputs": np.zeros((0, 8, 8, 1), "uint8")}, "shape"),
        ({"inputs": np.zeros((2, 8, 8, 1), "int32")}, "dtype"),
        ({"outputs": np.zeros((3, 8, 8, 1), "uint8")}, "one of outputs per input"),
        ({"outlines": square(0, 5, 3)}, "one of outlines per input"),
        ({"outlines": np.zeros((2, 4, 3))}, "shape"),
        ({"captions": ["a"]}, "one of captions per input"),
        ({"columns": 0}, "columns"),
    ],
)
def test_frame_refuses_what_does_not_fit(changed, message):
    given = {"inputs": np.zeros((2, 8, 8, 1), "uint8"), "outputs": None, "outlines": None}
    with pytest.raises(ValueError, match=message):
        pictures.draw_frame(**given | changed, title="t")


@pytest.mark.parametrize("mono", [False, True])
def test_fonts_have_the_glyphs_of_captions(mono):
    font = pictures._font(13, mono=mono)
    missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    for glyph in "✓✗→…·":
        assert (font.getmask(glyph).getbbox(), bytes(font.getmask(glyph))) != missing


def test_averages_of_a_few_classes_have_room_for_their_caption():
    """Nothing reaches the right border, and a long name says that it goes on."""
    averages = np.ones((2, 8, 8, 1))
    names = ["a very long class name, longer than its pictures", "b"]
    sheet = np.asarray(pictures.draw_averages(averages, averages, names))
    assert (sheet[:, -8:] == 255).all()
    assert (sheet[:60, :-8] != 255).any()
    font = pictures._font(13, bold=True, mono=True)
    assert pictures._shorten(names[0], 116, font).endswith("…")


# --- the film ---


both_films = pytest.mark.parametrize("name", ["film.gif", "film.webp"])


@both_films
def test_film_has_the_frames_and_their_times(name, tmp_path):
    frames = []
    for epoch in range(20):
        batch = images(16, seed=epoch)
        picture = pictures.draw_frame(batch, batch, square(2, 20, 16), title=f"Epoch {epoch}")
        frames.append(tmp_path / f"epoch-{epoch:03d}.png")
        if epoch == 7:
            picture = picture.crop((0, 0, 500, 300))  # another size is padded
        picture.save(frames[-1])
    films.write_film(frames, tmp_path / name)
    with Image.open(tmp_path / name) as film:
        times = []
        assert film.n_frames == 20
        assert film.info["loop"] == 0
        for index in range(20):
            film.seek(index)
            shown = film.convert("RGB")
            times.append(film.info["duration"])
            with Image.open(frames[0 if index == 0 else 19]) as first:
                assert shown.size == first.size
            assert shown.getpixel((2, 2)) == pictures.PAPER
            assert orange(shown) > 500
    assert times == [1200] + [600] * 18 + [2500]
    assert (tmp_path / name).stat().st_size < 3_000_000
    assert not leftovers(tmp_path)


@both_films
def test_film_of_one_frame_and_of_none(name, tmp_path):
    pictures.draw_frame(images(1), None, None, title="t").save(tmp_path / "a.png")
    films.write_film([tmp_path / "a.png"], tmp_path / name)
    with Image.open(tmp_path / name) as film:
        assert film.n_frames == 1
    with pytest.raises(ValueError, match="at least one frame"):
        films.write_film([], tmp_path / "none.gif")
    assert not (tmp_path / "none.gif").exists()
    assert not leftovers(tmp_path)


@both_films
def test_film_of_noise_stays_small(name, tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for epoch in range(4):
        batch = rng.integers(0, 256, (16, 32, 32, 3), dtype="uint8")
        frames.append(tmp_path / f"{epoch}.png")
        pictures.draw_frame(batch, batch, None, title="t").save(frames[-1])
    films.write_film(frames, tmp_path / name)
    assert (tmp_path / name).stat().st_size < 4 * 150_000


# --- plots ---


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.1, "val_accuracy": 0.4}],
        [{"epoch": e, "loss": float("nan"), "accuracy": np.float32(0.5)} for e in (1, 2, 3)],
        [{"epoch": e, "loss": 1 / e, "val_accuracy": 0.5} for e in range(1, 101)],
    ],
    ids=["none", "one", "nan", "many"],
)
def test_curves(history):
    picture = opened(plots.draw_curves(history, kept_epoch=1 if history else None))
    assert picture.width >= 900
    assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_histograms_of_what_does_not_change_are_one_bar(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or b"")
    keys = ("angle", "zoom_x", "zoom_y", "shear", "right", "down")
    same = dict.fromkeys(keys, 1 + 1e-8 * np.random.default_rng(0).normal(size=500))
    plots.draw_theta(same | {"angle": np.linspace(-90, 90, 500)})
    turned, *others = drawn[0].axes
    assert turned.get_xlim()[1] > 80
    for panel in others:
        assert sum(bar.get_height() > 0 for bar in panel.patches) == 1
        assert panel.get_xlim()[1] - panel.get_xlim()[0] > 0.9


@pytest.mark.parametrize("k", [1, 2, 10, 62, 100])
def test_confusion(k):
    names = [f"${i}_é" for i in range(k)] if k != 62 else string.digits + string.ascii_letters
    counts = confusion(k)
    counts[0] = 0  # a class without test images
    assert 400 < opened(plots.draw_confusion(counts, names)).width < 4000


def test_confusion_takes_names_its_font_lacks():
    assert opened(plots.draw_confusion(confusion(2), ["犬", "猫"])).format == "PNG"


def test_confusion_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        plots.draw_confusion(confusion(3), ["a", "b"])


# --- the page ---


def test_report_is_one_accessible_offline_page(tmp_path):
    run = make_run(tmp_path / "my run", names=string.digits)
    assert report.write_report(run) == run.report_file
    text = run.report_file.read_text(encoding="utf-8")
    page = Page(text)
    assert len(text.encode()) < 5_000_000
    assert not re.search(r"https?://|@import|url\(", text)
    assert not page.all("link")
    assert "default-src 'none'" in text
    assert {tag for tag, _ in page.elements} >= {"header", "nav", "main", "footer", "details"}
    assert len(page.all("h1")) == 1
    assert page.all("html")[0]["lang"] == "en"
    for image in page.all("img"):
        assert image["src"].startswith(("data:image/png;base64,", "data:image/gif;base64,"))
        assert len(image["alt"]) > 20
        assert int(image["width"]) > 0
    assert len(page.all("img")) == 1 + 4 + 2  # film, a picture an epoch, curves and confusion
    hidden = [image for image in page.all("img") if "hidden" in image]
    assert len(hidden) == 3
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"][1:] in ids
    assert {label["for"] for label in page.all("label")} == {"epoch"}
    accuracy = run.metrics["test"]["accuracy"]
    assert f"Test accuracy {accuracy:.1%}" in page.text
    for expected in ("60,000 images", "12,345", "3 min 12 s", "1,500 images/s"):
        assert expected in page.text
    assert "stn train --epochs 3" in page.text
    assert "batch_size 256" in page.text
    assert "Training has not finished" not in page.text
    assert not leftovers(run.path)


def hang(run, count=3, *, transformed=True, worst=2, seed=0):
    """A wall of a few images, as training would leave it."""
    total = count + worst
    arrays = {
        "index": np.arange(total),
        "worst": np.arange(total) >= count,
        "inputs": images(total, seed=seed),
        "labels": np.zeros(total, int),
        "guesses": np.arange(total) % 2,
        "probabilities": np.full(total, 0.75),
    }
    if transformed:
        arrays |= {"outputs": images(total), "outlines": square(3, 24, total)}
        arrays["words"] = np.array(["turned 31° left, zoomed 1.2x"] * total)
    np.savez(run.wall_file, **arrays)
    runs.write_json(run.dataset_file, {"class_names": ["a", "<b>"], "image_shape": [28, 28, 1]})


def test_report_shows_test_images_and_the_worst_mistakes(tmp_path):
    run = make_run(tmp_path / "run")
    hang(run)
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    text = page.text
    assert text.count("turned 31° left, zoomed 1.2x") == 5
    assert text.count("a , recognized (75%)") == 3
    assert text.count("a , taken for <b> (75%)") == 2
    assert text.index("Images of 1 of the 2 classes") < text.index("The worst mistakes first")
    radios = [e for e in page.all("input") if e["type"] == "radio"]
    assert [("checked" in e, e["value"]) for e in radios] == [
        (True, "wall-some"),
        (False, "wall-worst"),
    ]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert {"wall", "wall-some", "wall-worst"} <= set(ids)
    # Without a script nothing is hidden but the choice itself.
    assert all("hidden" not in attrs for tag, attrs in page.elements if tag == "li")

    hang(run, worst=0, transformed=False)
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert "wall-worst" not in [attrs.get("id") for _, attrs in page.elements]
    assert not [e for e in page.all("input") if e["type"] == "radio"]


def test_report_claims_every_class_only_where_all_are_shown(tmp_path):
    run = make_run(tmp_path / "run")
    hang(run)
    runs.write_json(run.dataset_file, run.dataset | {"class_names": ["a"] * 2})
    assert "Images of every class" not in Page(report.render(run)).text
    runs.write_json(run.dataset_file, run.dataset | {"class_names": ["a", "b"]})
    with np.load(run.wall_file) as archive:
        arrays = dict(archive) | {"labels": np.arange(5) % 2}
    np.savez(run.wall_file, **arrays)
    assert "Images of every class" in Page(report.render(run)).text


def test_report_leaves_out_what_there_is_no_room_for(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", epochs=1)
    hang(run, 6, worst=6)
    one = len(walls.cards(run, worst=False)[0]["source"])
    monkeypatch.setattr(report, "WALL_BYTES", 8 * one)
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    shown = page.text.count("turned 31° left")
    assert 2 <= shown < 12


def test_report_puts_the_numbers_of_a_control_beside(tmp_path):
    run = make_run(tmp_path / "run")
    control = make_run(tmp_path / "plain", config=run.config.replace(transform="none"))
    metrics = control.metrics
    metrics["test"]["accuracy"] = run.metrics["test"]["accuracy"] - 0.05
    metrics["parameters"] = 12321
    runs.write_json(control.metrics_file, metrics)
    page = report.write_report(run)
    assert "Control" not in Page(page.read_text(encoding="utf-8")).text

    text = Page(report.write_report(run, control=control.path).read_text(encoding="utf-8")).text
    assert "+5.0 points with it · run plain" in text
    assert "Parameters 12,345 12,321" in text
    assert "trained alike, without" in text
    assert "differs in more" not in text

    # That of a sweep, without being asked for; an older sweep has no numbers.
    point = {"strength": 0.0, "accuracy": 0.9}
    last = {"strength": 90.0, "accuracy": 0.5}
    turned = last | {"alignment_error": 7.25}
    sweep = {"kind": "rotation", "unit": "degrees", "error_unit": "degrees"}
    sweep["runs"] = [
        comparison.summarize(run) | {"points": [point, turned]},
        comparison.summarize(control) | {"points": [point, last], "differences": []},
    ]
    runs.write_json(run.sweep_file("rotation"), sweep)
    text = Page(report.write_report(run).read_text(encoding="utf-8")).text
    assert "+5.0 points with it · run plain" in text
    assert "run recognizes 90.0% of images turned by 0° and 50.0% of images turned by 90°" in text
    assert "90°, of which the layer leaves 7.25°." in text
    sweep["runs"][1] = {"name": "plain", "points": [point, last]}
    runs.write_json(run.sweep_file("rotation"), sweep)
    assert "points with it" not in Page(report.write_report(run).read_text(encoding="utf-8")).text


def test_report_shows_alarms(tmp_path):
    run = make_run(tmp_path / "run")
    text = Page(report.write_report(run).read_text(encoding="utf-8")).text
    assert "alarms" not in text.lower(), "nothing was measured"
    history = [record | {"luck": 0.5, "out_of_frame": 0.1} for record in run.history]
    runs.write_json(run.history_file, history)
    assert "No alarms." in Page(report.write_report(run).read_text(encoding="utf-8")).text
    history[-1]["out_of_frame"] = 0.55
    runs.write_json(run.history_file, history)
    text = Page(report.write_report(run).read_text(encoding="utf-8")).text
    assert "No alarms" not in text
    assert "55% of the sampling points lie outside the image" in text
    assert "(epoch 3)" in text


def test_report_says_in_what_else_a_control_differs(tmp_path):
    run = make_run(tmp_path / "run")
    other = run.config.replace(transform="none", epochs=2, model="reference")
    control = make_run(tmp_path / "plain", epochs=2, config=other)
    runs.write_json(control.metrics_file, control.metrics | {"parameters": 99999})
    text = Page(report.write_report(run, control=control).read_text(encoding="utf-8")).text
    assert "run plain, which differs in more" in text
    assert "is trained alike" not in text
    assert "model: compact here, reference there" in text
    assert "epochs: 3 here, 2 there" in text
    assert "parameters: 12,345 here, 99,999 there" in text


def test_report_takes_no_other_run_for_a_control(tmp_path):
    run = make_run(tmp_path / "run")
    plain = run.config.replace(transform="none")
    before = report.write_report(run).read_bytes()
    for i, (options, match) in enumerate(
        [
            ({"config": run.config}, "with transform='affine'"),
            ({"config": plain, "finished": False}, "no results on test images yet"),
            ({"config": plain.replace(data="mnist")}, "with data=mnist"),
            ({"config": plain.replace(distort="R")}, "with distort=R"),
            ({"config": plain.replace(seed=1)}, "with seed=1"),
            ({"config": plain, "names": ("a", "c")}, "with other classes"),
        ]
    ):
        control = make_run(tmp_path / f"{i}", **options)
        with pytest.raises(UserError, match=f"^Expected as control .* Received: .*{match}"):
            report.write_report(run, control=control)
    with pytest.raises(UserError, match="with transform='affine'"):
        report.write_report(run, control=run)
    control = make_run(tmp_path / "control", config=plain)
    with pytest.raises(UserError, match="leave out --control"):
        report.write_report(control, control=control)
    assert run.report_file.read_bytes() == before


def test_report_says_how_much_of_the_turns_is_left(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = run.metrics | {"alignment": {"turned": 44.3, "alignment_error": 6.41}}
    runs.write_json(run.metrics_file, metrics)
    text = Page(report.write_report(run).read_text(encoding="utf-8")).text
    assert "Turn that remains 6.4° median; images were turned by 44°" in text


def test_report_lists_the_worst_class_and_the_most_frequent_confusion_first(tmp_path):
    run = make_run(tmp_path / "run", epochs=1, names=("x", "y", "z"))
    metrics = run.metrics
    metrics["test"]["confusion"] = [[8, 2, 0], [5, 5, 0], [0, 0, 0]]
    metrics["test"]["per_class"] = {
        "x": {"accuracy": 0.8, "count": 10},
        "z": {"accuracy": None, "count": 0},
        "y": {"accuracy": 0.5, "count": 10},
    }
    runs.write_json(run.metrics_file, metrics)
    text = Page(report.write_report(run).read_text(encoding="utf-8")).text
    assert "y 50.0% 10 x 80.0% 10 z — 0" in re.sub(r"\s+", " ", text)
    assert "y → x 5 50.0% x → y 2 20.0%" in text


@pytest.mark.parametrize("epochs", [0, 2])
def test_report_of_an_interrupted_run(epochs, tmp_path):
    config = Config(epochs=9)
    run = make_run(tmp_path / "run", epochs=epochs, finished=False, config=config)
    if not epochs:
        run.history_file.unlink()
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert "Training has not finished." in page.text
    assert "no results on test images yet" in page.text
    assert "The film is made when training ends." in page.text
    assert ("2 of 9 epochs are done" if epochs else "No epoch is done") in page.text
    assert bool(page.all("input")) == bool(epochs)  # one picture needs no slider
    assert ("Validation accuracy 65.0%" in page.text) == bool(epochs)


def test_report_of_almost_nothing(tmp_path):
    run = runs.Run(tmp_path)
    run.config_file.write_text(Config().to_toml(), encoding="utf-8")
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert "There are no pictures yet." in page.text
    runs.write_json(run.metrics_file, {"test": {"accuracy": float("nan")}, "control": {}})
    runs.write_json(run.history_file, [{}])
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert "Test accuracy —" in page.text


def test_report_of_a_control_says_so(tmp_path):
    run = make_run(tmp_path / "run", epochs=1, config=Config(transform="none"))
    assert "without a spatial transformer" in Page(report.write_report(run).read_text()).text


def test_report_escapes_what_it_is_given(tmp_path):
    evil = "<script>alert('&\")</script>"
    run = make_run(tmp_path / "<b>run", epochs=1, names=(evil, "<img src=x>"))
    runs.write_json(run.environment_file, {"format": 1, "<i>": evil, "command": f"stn {evil}"})
    run.summary_file.write_text(f"</pre>{evil}", encoding="utf-8")
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1
    assert not page.all("i") and not page.all("b")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.text.count(evil) >= 4


def test_report_stays_small_however_many_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SHOTS", 5)
    monkeypatch.setattr(report, "FILM_BYTES", 20_000)
    run = make_run(tmp_path / "run", epochs=12)
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    epochs = [int(image["data-epoch"]) for image in page.all("img") if "data-epoch" in image]
    assert epochs == [0, 3, 6, 9, 12]
    assert "stn.gif" in page.text
    monkeypatch.setattr(report, "SHOTS_BYTES", 1)
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert [i["data-epoch"] for i in page.all("img") if "data-epoch" in i] == ["0", "12"]


def test_report_is_all_or_nothing(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    report.write_report(run)
    before = run.report_file.read_bytes()
    run.metrics_file.write_text(json.dumps({})[:1], encoding="utf-8")
    with pytest.raises(UserError, match="readable JSON"):
        report.write_report(run)
    assert run.report_file.read_bytes() == before
    assert not leftovers(run.path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wall.npz", "x", "delete it"),
        ("wall.npz", "", "delete it"),
        ("wall.npz", "PK\x03\x04", "delete it"),
        ("averages.png", "x", "delete it"),
        ("theta.png", "x", "delete it"),
        ("stn.gif", "x", "delete it"),
        ("frames/epoch-001.png", "x", "delete it"),
        ("sweep-rotation.json", '{"a": 1}', "--sweep rotation`, or delete it"),
        ("sweep-rotation.json", "[]", "--sweep rotation`, or delete it"),
        ("sweep-rotation.json", '{"kind": "rotation", "unit": "", "runs": [3]}', "or delete it"),
        ("history.json", '{"a": 1}', "of another kind"),
        ("metrics.json", "[]", "of another kind"),
    ],
)
def test_a_damaged_file_is_named(name, content, message, tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"^Expected .* Received: ") as raised:
        report.write_report(run)
    assert str(run.path / name) in str(raised.value)
    assert message in str(raised.value)
    assert not run.report_file.exists()
