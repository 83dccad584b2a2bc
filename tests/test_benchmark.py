"""The bench: its arithmetic, whom it lets take part, and that every topic runs."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from stn.tool import benchmark, cli
from stn.tool.benchmark import timing
from stn.tool.config import UserError

pytestmark = pytest.mark.once

DOCS = Path(__file__).parents[1] / "docs"


# --- arithmetic ----------------------------------------------------------------------------------


def test_ratios_do_not_see_a_drift():
    """All get slower and slower, and once everybody is stopped: only pairs can be compared."""
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 5, 15)
    drift[7] *= 100
    theirs = drift * rng.uniform(0.99, 1.01, 15)
    ours = 0.5 * drift * rng.uniform(0.99, 1.01, 15)
    ratio = timing.ratio(ours, theirs)
    assert ratio["median"] == pytest.approx(0.5, rel=0.02)
    assert 0.48 < ratio["low"] <= ratio["median"] <= ratio["high"] < 0.52


@pytest.mark.parametrize(
    ("count", "low", "high", "confidence"),
    [(1, 1, 1, 0), (3, 1, 3, 0.75), (6, 1, 6, 0.96875), (15, 4, 12, 0.9648)],
)
def test_interval_of_a_median(count, low, high, confidence):
    ratio = timing.ratio(range(count, 0, -1), [1] * count)
    assert (ratio["low"], ratio["high"]) == (low, high)
    assert ratio["confidence"] == pytest.approx(confidence, abs=1e-4)


def test_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for values in rng.lognormal(0, 0.5, (2000, 15)):
        ratio = timing.ratio(values, np.ones(15))
        hits += ratio["low"] <= 1 <= ratio["high"]
    assert hits / 2000 == pytest.approx(0.965, abs=0.015)


def test_spread_is_median_and_quartiles():
    found = timing.spread([5, 1, 2, 4, 3])
    assert found == {"median": 3, "low": 2, "high": 4, "fastest": 1}


def test_interleave_takes_turns_and_leaves_out_the_warm_up():
    now, order = [0.0], []

    def contender(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    calls = {"a": contender("a", 0.25), "b": contender("b", 1.0)}
    seconds = timing.interleave(calls, rounds=2, least=0.5, clock=lambda: now[0])
    assert seconds == {"a": [0.25, 0.25], "b": [1.0, 1.0]}
    # Twice before; then what is fast one more time before it is timed, and often enough.
    assert "".join(order) == "aabb" + "aaab" + "baaa"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what others take")
def test_neighbors_are_others_and_not_we():
    import subprocess
    import time

    def spin(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    alone = timing.Neighbors()
    spin(0.5)
    before = alone.share()
    code = "import time\nprint(flush=True)\nwhile time.process_time() < 30: pass"
    busy = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)
    ]
    try:
        for process in busy:
            process.stdout.readline()  # it has begun
        beside = timing.Neighbors()
        time.sleep(1)
        share = beside.share()
    finally:
        for process in busy:
            process.kill()
            process.communicate()
    assert 0 <= before <= 1
    assert min(4, os.cpu_count()) / os.cpu_count() * 0.7 < share <= 1


def test_copy_bandwidth_is_plausible():
    assert 1e8 < timing.copy_bandwidth(2**22, 2, seconds=0.01) < 1e13


# --- who takes part ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    from stn.tool.benchmark.contenders import Case

    return Case.draw((3, 5, 7, 2), "both")


def contender(results, **options):
    from stn.tool.benchmark.contenders import Contender

    return Contender(lambda: None, lambda: [np.array(value) for value in results], **options)


def test_check_takes_what_agrees_and_rejects_what_does_not(case):
    from stn.tool.benchmark import sampler
    from stn.tool.benchmark.contenders import UnavailableError

    truth = [case.images, case.params, case.upstream]
    near = [value + np.float32(1e-5) for value in truth]
    errors = sampler.check(contender(near), truth)
    assert set(errors) == {"result", "params", "images"}
    assert errors["result"] == pytest.approx(1e-5, rel=0.05)
    for wrong in range(3):
        off = list(truth)
        off[wrong] = 1.1 * off[wrong]
        with pytest.raises(UnavailableError, match="computes something else"):
            sampler.check(contender(off), truth)
    with pytest.raises(UnavailableError, match="computes something else"):
        sampler.check(contender([np.full_like(case.images, np.nan)]), truth)
    with pytest.raises(UnavailableError, match="shape"):
        sampler.check(contender([case.images[:1]]), truth)


def test_a_peer_with_wrong_numbers_is_not_compared(monkeypatch, case):
    from stn.tool.benchmark import contenders, sampler

    def wrong(case):
        return {"loop": lambda: contender([case.images])}

    monkeypatch.setitem(contenders.MAKERS, "scipy", wrong)
    forward = contenders.Case(case.images, case.params, case.upstream, "forward")
    found = sampler.measure_case(forward, ["scipy"], bandwidth=1e9, rounds=2, quick=True)
    assert "scipy" not in found["ratios"]
    assert {entry["name"] for entry in found["contenders"]} == {"stn"}
    assert found["neighbors"] is None or 0 <= found["neighbors"] <= 1
    (reason,) = [one["reason"] for one in found["left_out"] if one["name"] == "scipy"]
    assert "computes something else" in reason


def test_a_peer_that_breaks_is_left_out_with_its_reason(monkeypatch, case):
    from stn.tool.benchmark import contenders, sampler

    def broken(case):
        def make():
            raise ImportError("libmissing.so.1")

        return {"loop": make}

    monkeypatch.setitem(contenders.MAKERS, "scipy", broken)
    found = sampler.measure_case(case, ["scipy"], bandwidth=1e9, rounds=2, quick=True)
    (reason,) = [one["reason"] for one in found["left_out"] if one["name"] == "scipy"]
    assert reason == "ImportError: libmissing.so.1"


@pytest.mark.parametrize("name", ["torch", "kornia", "keras", "opencv", "scipy"])
@pytest.mark.parametrize("way", ["forward", "theta", "both"])
def test_peers_agree_with_us(name, way):
    """All that is installed computes the same: results and gradients, whatever their parameters."""
    import keras

    from stn.tool.benchmark import contenders, sampler

    pytest.importorskip(benchmark.PEERS[name])
    if way != "forward" and name in ("opencv", "scipy"):
        pytest.skip("has no gradients")
    if way != "forward" and name == "keras" and keras.backend.backend() == "tensorflow":
        pytest.skip("has no gradient to the transform")
    case = contenders.Case.draw((3, 9, 14, 2), way)
    ours = next(iter(contenders.ours(case).values()))().results()
    variants = contenders.MAKERS[name](case)
    variant = next(key for key in ("eager", "jit", "tf.function", "loop") if key in variants)
    errors = sampler.check(variants[variant](), ours)
    assert len(errors) == {"forward": 1, "theta": 2, "both": 3}[way]
    # OpenCV rounds to 1/32 of a pixel, but not at every number of channels.
    assert max(errors.values()) < (2 / 32 if name == "opencv" else 1e-4)


def test_pixel_matrices_are_where_grids_says(case):
    from stn import grids

    height, width = case.images.shape[1:3]
    corners = np.array([[0.0, 0.0], [width - 1.0, 0.0], [0.0, height - 1.0]])
    normalized = [
        grids.to_normalized(corners[:, i], n, False) for i, n in enumerate((width, height))
    ]
    read = case.params.reshape(-1, 2, 3) @ np.stack([*normalized, np.ones(3)])
    expected = [grids.to_pixel(read[:, i], n, False) for i, n in enumerate((width, height))]
    found = case.pixel_matrices()[:, :2] @ np.concatenate([corners, np.ones((3, 1))], 1).T
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-5)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capfd):
    """Run `stn bench` in this process; gives exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stn", "bench", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capfd.readouterr()

    return run


def check_environment(record):
    assert record["format"] == benchmark.FORMAT
    assert record["quick"] is True
    where = record["environment"]
    for key in ("cpu", "device", "platform", "python", "keras", "backend", "backend_version"):
        assert isinstance(where[key], str) and where[key], key
    for key in ("stn", "started", "command"):
        assert isinstance(where[key], str) and where[key], key
    assert where["threads"] >= 1
    assert where["cores"] >= 1


def check_spread(spread):
    assert 0 < spread["low"] <= spread["median"] <= spread["high"]


def test_sampler(command, monkeypatch, tmp_path):
    monkeypatch.setitem(benchmark.PEERS, "kornia", "no_such_module")
    options = ["sampler", "--quick", "--against", "opencv,scipy,kornia"]
    code, out, _ = command(*options, "--json", "-")
    assert code == 0
    record = json.loads(out)
    check_environment(record)
    assert record["topic"] == "sampler"
    assert record["missing"] == {"kornia": "no module 'no_such_module' is installed"}
    assert [case["pass"] for case in record["cases"]] == ["forward", "theta", "both"]
    for case in record["cases"]:
        assert case["floor"]["seconds"] > 0
        assert case["floor"]["bytes"] > 0
        names = {entry["name"] for entry in case["contenders"]}
        assert names == ({"stn", "opencv", "scipy"} if case["pass"] == "forward" else {"stn"})
        assert set(case["ratios"]) == names - {"stn"}
        for entry in case["contenders"]:
            check_spread(entry["seconds"])
            assert entry["share_of_floor"] > 0
            assert entry["largest_errors"]["result"] < 1e-3
        for ratio in case["ratios"].values():
            check_spread(ratio)
    assert any("no gradients" in one["reason"] for one in record["cases"][1]["left_out"])
    assert all(len(curve["seconds"]) == len(curve["shapes"]) for curve in record["growth"])

    file = tmp_path / "record.json"
    file.write_text("old", encoding="utf-8")
    code, out, _ = command(*options, "--shape", "2x4x4x1", "--rounds", 2, "--json", file)
    assert code == 0
    assert "ours / theirs" in out
    assert "kornia is missing: no module 'no_such_module' is installed" in out
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [case["shape"] for case in written["cases"]] == [[2, 4, 4, 1]] * 3
    assert list(tmp_path.iterdir()) == [file]


def test_predict(command, tmp_path):
    file = tmp_path / "record.json"
    code, out, _ = command("predict", "--quick", "--json", file)
    assert code == 0
    assert "images/s" in out
    record = json.loads(file.read_text(encoding="utf-8"))
    check_environment(record)
    for stream in record["streams"].values():
        assert [mark["images"] for mark in stream["marks"]] == [1000, 2000]
        assert 0 < stream["rates"]["low"] <= stream["rates"]["high"]


def test_baseline_is_the_network_of_the_tutorials():
    """As large as our `reference`, of which it differs in the sampler only."""
    import keras

    import stn
    from stn.tool.benchmark import steps

    if keras.backend.backend() != "tensorflow":
        pytest.skip("is written for TensorFlow")
    model = steps.tutorial_model()
    assert model.count_params() == stn.classifier("reference").count_params()
    images = np.random.default_rng(0).random((2, 28, 28, 1), "float32")
    found = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_the_monitor_can_be_timed():
    import stn
    from stn.tool.benchmark import steps

    found = steps._monitor(stn.classifier("compact"), steps._draw(70), rounds=2)
    assert 0 < found["low"] <= found["median"] <= found["high"]


@pytest.mark.slow
def test_train(command, tmp_path):
    import keras

    file = tmp_path / "record.json"
    code, out, _ = command("train", "--quick", "--json", file)
    assert code == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    check_environment(record)
    ours = {"compact", "compact, augmented", "reference"}
    if keras.backend.backend() == "tensorflow":
        ours |= {"tutorial, XLA"}
        assert set(record["steps"]) == ours | {"tutorial"}
        assert set(record["ratios"]) == ours
    else:
        assert set(record["steps"]) == ours
        assert "TensorFlow" in record["missing"]["tutorial"]
        assert "tutorial is missing" in out
    for found in record["steps"].values():
        check_spread(found["seconds"])
    for found in record["distortions"].values():
        check_spread(found["ratio"])
    assert 0 < record["monitor"]["shares"]["EMNIST ByClass"] < record["monitor"]["shares"]["glyphs"]
    assert record["first_step"]["total"]["median"] > record["first_step"]["import"]["median"]


@pytest.mark.slow
def test_import(command, tmp_path):
    file = tmp_path / "record.json"
    code, out, _ = command("import", "--quick", "--json", file)
    assert code == 0
    assert "stn --help" in out
    record = json.loads(file.read_text(encoding="utf-8"))
    check_environment(record)
    for both in record["starts"].values():
        check_spread(both["seconds"])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the peak")
def test_memory_of_a_call():
    """`affine_grid` makes two numbers a pixel from three; image and result have one each."""
    from stn.tool.benchmark import memory

    pytest.importorskip("torch")
    found = memory.measure((1, 64, 64, 1), "forward", "torch", "eager")
    assert found["times"] == pytest.approx(2.5, rel=0.1)
    found = memory.measure((1, 64, 64, 1), "forward", "torch", "nobody")
    assert found["times"] is None
    assert "nobody" in found["reason"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["samplers"], "Expected one of ('sampler', 'train', 'predict', 'import')"),
        (["--against", "torch,tensorfow"], "Expected --against to be some of torch,kornia"),
        (["--against", ","], "Expected --against to be some of torch,kornia"),
        (["--shape", "28x28"], "Expected --shape to be BATCHxHEIGHTxWIDTHxCHANNELS"),
        (["--shape", "1x0x28x3"], "Expected --shape to be BATCHxHEIGHTxWIDTHxCHANNELS"),
    ],
)
def test_mistakes(command, arguments, expected):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Received" in err
    assert "Traceback" not in err


def test_options_from_text():
    options = benchmark.Options.of("train", " torch, scipy,", ["64x28x28x3"], quick=True)
    assert options.peers == ("torch", "scipy")
    assert options.shapes == ((64, 28, 28, 3),)
    assert benchmark.Options.of("sampler").peers == tuple(benchmark.PEERS)
    with pytest.raises(UserError, match="Received: 'x'"):
        benchmark.Options.of("x")


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("benchmarks_page", DOCS / "benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_what_the_records_give(page):
    records = page.read()
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page.render(records)
    for name, record in records:
        assert record["format"] == benchmark.FORMAT, name
        assert not record["quick"], f"{name} was made with --quick"
        if record.get("growth"):
            assert (DOCS / "images" / f"benchmarks-{name}.png").exists()
        assert f"-{record['environment']['backend']}-{record['topic']}" in name


def test_page_quotes_numbers_of_the_record(page):
    record = {
        "topic": "sampler",
        "environment": {
            "backend": "jax",
            "backend_version": "0.1",
            "device": "cpu",
            "threads": 2,
            "cpu": "Some CPU",
            "peers": {"torch": "2.0", "kornia": None},
            "command": "stn bench sampler",
            "started": "2026-01-02T00:00:00",
            "stn": "0.1.0",
            "revision": "abc",
            "python": "3.11",
            "keras": "3.15",
        },
        "cases": [
            {
                "shape": [8, 4, 4, 1],
                "pass": "theta",
                "contenders": [
                    {
                        "name": name,
                        "variant": variant,
                        "seconds": {"median": seconds, "low": seconds, "high": seconds},
                        "share_of_floor": 0.25,
                        "memory": {"times": 1.75, "reason": None},
                    }
                    for name, variant, seconds in (
                        ("stn", "slow", 0.3),
                        ("stn", "jit", 0.012),
                        ("torch", "eager", 0.024),
                    )
                ],
                "ratios": {"torch": {"median": 0.5, "low": 0.4, "high": 0.6, "theirs": "eager"}},
                "left_out": [
                    {"name": "torch", "variant": "torch.compile", "reason": "no compiler"}
                ],
            }
        ],
        "growth": [],
        "neighbors": 0.31,
        "missing": {"kornia": "no module 'kornia' is installed"},
    }
    text = page.render([("some-jax-sampler", record)])
    assert "### JAX, 2 cores of Some CPU" in text
    assert (
        "| 8x4x4x1 | to the parameters | 12 ms, jit | 25% | 1.8 | **0.50** (0.40 - 0.60), eager |"
        in text
    )
    assert "- torch, torch.compile: no compiler (8x4x4x1 theta)" in text
    assert "kornia is missing: no module 'kornia' is installed." in text
    assert "**Other processes took up to 31% of the processor" in text
    record["neighbors"] = None
    assert "Other processes" not in page.render([("some-jax-sampler", record)])
