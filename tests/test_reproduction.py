"""Tables of papers: cells are chosen by name, trained once, and collected beside the paper's."""

import contextlib
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import draw_shapes, write_idx
from stn.tool import checkpoints, reproduction, runs
from stn.tool.config import UserError

pytestmark = pytest.mark.once


def test_the_table_is_the_papers():
    paper = {cell.name: cell.paper for cell in reproduction.TABLE1}
    assert len(paper) == 36
    assert paper["RTS/fcn"] == 5.2
    assert paper["TC/st-cnn-affine"] == 1.7
    assert paper["E/st-fcn-tps"] == 2.4
    assert "TC/st-cnn-tps" not in paper  # which the paper does not have


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["R/cnn"], ["R/cnn"]),
        (["st-cnn-tps"], ["R/st-cnn-tps", "RTS/st-cnn-tps", "P/st-cnn-tps", "E/st-cnn-tps"]),
        (["TC"], ["TC/fcn", "TC/cnn", "TC/st-fcn-affine", "TC/st-cnn-affine"]),
        (["E/st-*-tps", "E/cnn"], ["E/cnn", "E/st-fcn-tps", "E/st-cnn-tps"]),
        (["R/cnn", "R/cnn"], ["R/cnn"]),
    ],
)
def test_cells_are_chosen_by_name_row_column_and_pattern(patterns, expected):
    assert [cell.name for cell in reproduction.choose(patterns)] == expected


def test_all_cells_and_cells_that_are_none():
    assert len(reproduction.choose([])) == 36
    with pytest.raises(UserError, match=r"Expected cells such as .* Received: 'R/vgg'"):
        reproduction.choose(["R/cnn", "R/vgg"])


def test_the_recipes_are_equal_but_for_the_network():
    found = [reproduction.configure(cell).model_dump() for cell in reproduction.choose(["R"])]
    keys = ("parameters", "epochs", "batch_size", "learning_rate", "validation", "data")
    assert len({tuple(one[key] for key in keys) for one in found}) == 1
    assert found[0]["parameters"] == 400_000
    assert {one["model"] for one in found} == {"fcn", "cnn"}


def test_clutter_alone_is_averaged_behind_a_transformer():
    found = {cell: reproduction.configure(cell) for cell in reproduction.choose([])}
    pooled = {cell.name for cell, config in found.items() if config.pooling == 2}
    assert pooled == {"TC/st-fcn-affine", "TC/st-cnn-affine"}
    assert {config.output_size for config in found.values()} == {None, 30}
    (cell,) = reproduction.choose(["TC/st-cnn-affine"])
    assert reproduction.configure(cell, pooling=1).pooling == 1


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for stem, count, seed in (("train", 75, 1), ("t10k", 10, 2)):
        images, labels = draw_shapes(count, seed)
        write_idx(folder / f"{stem}-images-idx3-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A cell with two seeds, by the command line; the folder, and a way to go on.

    The second is the first under another name, and a bit worse.
    """
    from stn.tool import cli

    out = tmp_path_factory.mktemp("tables") / "table1"

    def command(*words):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            cli.app(
                ["reproduce", "table1", "--out", str(out), "--data-dir", str(digits), *words],
                standalone_mode=False,
            )
        return printed.getvalue()

    command("--cells", "R/fcn", "--seeds", "1", "--epochs", "2")
    shutil.copytree(out / "R-fcn-1", out / "R-fcn-2")
    second = runs.Run.open(out / "R-fcn-2")
    runs.write_text(second.config_file, second.config.replace(seed=2).to_toml())
    worse = {"accuracy": 0.9 * second.metrics["accuracy"]}
    metrics = second.metrics | worse | {"test": second.metrics["test"] | worse}
    runs.write_json(second.metrics_file, metrics)
    command("--cells", "R/fcn", "--seeds", "1,2", "--epochs", "2")
    return out, command


def test_what_is_there_is_kept_and_what_is_missing_is_trained(made):
    out, command = made
    first = runs.Run(out / "R-fcn-1")
    before = first.checkpoint_file.stat().st_mtime_ns
    results = json.loads(
        command("--cells", "R/fcn,R/st-fcn-affine", "--seeds", "1", "--epochs", "2", "--json")
    )
    assert first.checkpoint_file.stat().st_mtime_ns == before
    assert results == json.loads((out / "table1.json").read_text())
    cells = {cell["cell"]: cell for cell in results["cells"]}
    assert len(cells) == 36
    fcn, st = cells["R/fcn"], cells["R/st-fcn-affine"]
    assert [run["seed"] for run in fcn["runs"]] == [1, 2]
    errors = [100 * (1 - runs.Run(out / f"R-fcn-{i}").metrics["accuracy"]) for i in (1, 2)]
    assert fcn["error"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert fcn["spread"] == pytest.approx(np.std(errors, ddof=1), abs=1e-3)
    assert st["spread"] is None and len(st["runs"]) == 1
    assert cells["R/cnn"]["error"] is None
    for run in (*fcn["runs"], *st["runs"]):
        assert abs(run["parameters"] - 400_000) < 4_000
        assert run["command"].startswith("stn train --recipe table1-")
        assert run["epochs"] == 2
    table = {row[0]: row[1:] for row in reproduction.rows(results)}
    assert table["fcn"][0] == f"{fcn['error']:.2f} ± {fcn['spread']:.2f}* (2.1)"
    assert table["cnn"][0] == "- (1.2)"
    assert table["st-cnn-tps"][4] == ""


def test_earlier_results_are_kept_where_there_is_no_run_of_the_same_seed(made):
    out, _ = made
    earlier = reproduction.collect(out)
    cells = {cell["cell"]: cell for cell in earlier["cells"]}
    ours = cells["R/fcn"]["runs"]
    other = {**ours[0], "error": 7.0}
    cells["R/fcn"]["runs"] = [{**other, "seed": 1}, {**other, "seed": 3}]
    cells["RTS/cnn"]["runs"] = [{**other, "seed": 42}]
    found = {cell["cell"]: cell for cell in reproduction.collect(out, earlier)["cells"]}
    assert found["R/fcn"]["runs"] == [*ours, {**other, "seed": 3}]
    errors = [one["error"] for one in found["R/fcn"]["runs"]]
    assert found["R/fcn"]["error"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert (found["RTS/cnn"]["error"], found["RTS/cnn"]["spread"]) == (7.0, None)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (("--epochs", "3"), "epochs"),
        (("--epochs", "2", "--steps-per-execution", "2"), "steps_per_execution"),
    ],
)
def test_a_run_that_was_made_otherwise_is_not_passed_off(made, words, changed):
    _, command = made
    with pytest.raises(
        UserError, match=rf"R-fcn-1 .*another value for {changed}; choose another --out"
    ):
        command("--cells", "R/fcn", "--seeds", "1", *words)


def test_all_that_is_there_is_looked_at_before_anything_is_trained(made):
    out, command = made
    with pytest.raises(UserError, match=r"R-fcn-1 .*another value for epochs"):
        command("--cells", "R/st-fcn-tps,R/fcn", "--seeds", "1", "--epochs", "3")
    assert not (out / "R-st-fcn-tps-1").exists()


def test_a_copy_beside_a_run_is_not_a_run(made):
    out, _ = made
    before = reproduction.collect(out)
    copy = shutil.copytree(out / "R-fcn-1", out / "R-fcn-1-old")
    metrics = runs.Run(copy).metrics
    runs.write_json(copy / "metrics.json", metrics | {"test": {**metrics["test"], "accuracy": 0}})
    assert reproduction.collect(out) == before
    shutil.rmtree(copy)


def test_a_run_of_another_cell_or_other_options_is_not_passed_off(made):
    out, _ = made
    before = reproduction.collect(out)
    cells = {cell["cell"]: cell for cell in before["cells"]}
    assert "other" not in cells["R/fcn"]["runs"][0]
    copy = shutil.copytree(out / "R-fcn-1", out / "E-fcn-1")
    assert reproduction.collect(out) == before
    run = runs.Run.open(copy)
    text = run.config.replace(distort="E", learning_rate=0.1).to_toml()
    runs.write_text(run.config_file, text)
    runs.write_json(run.metrics_file, run.metrics | {"epochs": 60})
    after = reproduction.collect(out)
    cells = {cell["cell"]: cell for cell in after["cells"]}
    assert cells["E/fcn"]["runs"][0]["other"] == ["learning_rate"]
    assert reproduction.rows(after)[0][4].endswith("* (3.2)")
    shutil.rmtree(copy)


def test_a_broken_run_beside_is_told_before_anything_is_trained(made):
    out, command = made
    copy = shutil.copytree(out / "R-fcn-1", out / "P-fcn-1")
    with (copy / "config.toml").open("a", encoding="utf-8") as file:
        file.write("future_option = 1\n")
    with pytest.raises(UserError, match=r"future_option.*P-fcn-1"):
        command("--cells", "R/cnn", "--seeds", "1", "--epochs", "2")
    assert not (out / "R-cnn-1").exists()
    shutil.rmtree(copy)


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_a_cell_that_another_process_trains_is_left_to_it(made, capsys):
    out, command = made
    run = runs.Run.open(out / "R-fcn-1")
    shutil.copytree(run.path, out.parent / "aside")
    run.report_file.unlink()
    try:
        with checkpoints.begin(run, run.config, {}, resume=True, overwrite=False):
            assert "table1.json" in command("--cells", "R/fcn", "--seeds", "1", "--epochs", "2")
        assert not run.report_file.exists()
    finally:
        shutil.copy(out.parent / "aside" / run.report_file.name, run.report_file)


def test_a_run_whose_report_is_missing_is_finished(made):
    out, command = made
    run = runs.Run(out / "R-fcn-1")
    error = run.metrics["accuracy"]
    run.report_file.unlink()
    command("--cells", "R/fcn", "--seeds", "1", "--epochs", "2")
    assert run.report_file.exists() and run.metrics["accuracy"] == error


def test_data_may_have_moved_since(made, digits, tmp_path):
    _, command = made
    moved = shutil.copytree(digits, tmp_path / "moved")
    words = ("--cells", "R/fcn", "--seeds", "1", "--epochs", "2", "--data-dir", str(moved))
    command(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2"], "Expected the table to be 'table1'"),
        (["table1", "--cells", "Q"], "Expected cells such as"),
        (["table1", "--cells", ""], "Expected cells such as .* all without --cells"),
        (["table1", "--seeds", "1;2"], "Expected seeds as in 42,43,44"),
        (["table1", "--seeds", "-1"], "Expected seed to be"),
        (["table1", "--backend", "mxnet"], "Expected backend to be"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(words, message, tmp_path, monkeypatch):
    from stn.tool import cli

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        cli.app(["reproduce", *words], standalone_mode=False)
    assert not list(tmp_path.iterdir())


# --- the page of results -------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [None, 0.05])
def test_the_printed_table_fits_80_columns(spread):
    from rich.console import Console

    from stn.tool import printing

    cells = [
        {"cell": c.name, "row": c.row, "distort": c.distort, "paper": c.paper, "runs": []}
        | {"error": 12.34, "spread": spread}
        for c in reproduction.TABLE1
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    printing.print_paper({"title": reproduction.TITLE, "cells": cells}, console)
    text = console.export_text()
    for cell in reproduction.TABLE1:
        assert f" {cell.row} " in text
        assert f"({cell.paper:.1f})" in text
    assert text.count("12.34±0.05" if spread else "12.34 (") == len(cells)
    assert "not as many epochs" not in text
    cells[0]["runs"] = [{"epochs": 2}]
    printing.print_paper({"title": reproduction.TITLE, "cells": cells}, console)
    assert "* not as many epochs as the recipe says" in console.export_text()


DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("results_page", DOCS / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(page):
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page.render(page.read())


def test_runs_become_a_record_and_a_table(page, made, tmp_path, monkeypatch):
    out, _ = made
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    page.add("digits", [out / "R-fcn-1"])
    page.add("digits", [out / "R-fcn-1", out / "R-fcn-2"])  # the first again: not twice
    page.add("table1", [out])
    (_, digits), (_, table) = page.read(tmp_path / "results")
    assert [one["seed"] for one in digits["runs"]] == [1, 2]
    text = page.render([("digits", digits), ("table1", table)])
    mean = 100 - np.mean([one["error"] for one in digits["runs"]])
    assert f"| {mean:.2f} ± " in text
    assert "| 1, 2 |" in text
    assert "(2.1)" in text


def test_objects_found_are_no_test_accuracy(page):
    run = {"command": "stn train --recipe colocalization", "seed": 42, "error": 1.0}
    run |= {"mean_iou": 0.876, "train": 100, "test": 100, "parameters": 14055, "epochs": 15}
    run |= {"seconds": 24, "started": "2026-11-28T15:00:00", "revision": "abc", "cpu": "one"}
    run |= {"backend": "jax", "cores": 2}
    text = page.render([("colocalization", {"title": "Found", "runs": [run]})])
    assert "| command | found | mean overlap |" in text
    assert "| 99.00 % | 0.88 | 42 | 14,055 |" in text
    assert "accuracy" not in text.split("## Found")[1]


def test_a_learning_curve_is_extrapolated_with_its_uncertainty(page):
    def law(count):
        return 12 + 3_000 * count**-0.6

    counts = [10_000, 20_000, 40_000, 80_000]
    middle, low, high = page.extrapolate(counts, [law(n) for n in counts], [10**9] * 4)
    assert middle == pytest.approx(law(page.FULL), abs=0.02)
    assert high - low < 0.1
    middle, low, high = page.extrapolate(counts, [law(n) for n in counts], [16_000] * 4)
    assert low < law(page.FULL) < high
    assert 0.5 < high - low < 5
