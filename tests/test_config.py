"""Configurations, recipes, and the choice of a backend."""

import json
import os
import subprocess
import sys
import typing
from importlib import util

import pytest

from stn.tool import cli, config
from stn.tool.config import BACKENDS, Config, UserError, recipes, select_backend

# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("learning-rate", "learning_rate"),
        ("lable_smoothing", "label_smoothing"),
        ("transforms", "transform"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(UserError, match=f"Received: '{key}'; did you mean '{nearest}'"):
        Config(**{key: 1})


def test_key_like_nothing_lists_the_keys():
    with pytest.raises(UserError, match=r"Received: 'qqq'; known: recipe, data, .*backend$"):
        Config(qqq=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "3"),
        ("epochs", 3.0),
        ("epochs", True),
        ("epochs", 0),
        ("epochs", None),
        ("batch_size", 0),
        ("learning_rate", "fast"),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("weight_decay", -1e-9),
        ("label_smoothing", 1.0),
        ("validation", 0.0),
        ("validation", 1.0),
        ("augment", -1),
        ("patience", -1),
        ("seed", -1),
        ("seed", 2**32),
        ("image_size", 0),
        ("output_size", 0),
        ("deterministic", 1),
        ("data", 5),
        ("data_dir", 5),
        ("color", "gray"),
        ("distort", "RST"),
        ("model", "big"),
        ("transform", "rotate"),
        ("sampler", "cubic"),
        ("padding", "mirror"),
        ("padding", "constant"),
        ("pooling", 17),
        ("parameters", 10**8 + 1),
        ("schedule", "step"),
        ("backend", "theano"),
    ],
)
def test_wrong_value_names_key_and_value(key, value):
    with pytest.raises(UserError) as caught:
        Config(**{key: value})
    message = str(caught.value)
    assert message.startswith(f"Expected {key} to be ")
    assert message.endswith(f"Received: {key}={value!r}")


def test_choices_are_those_of_the_tables():
    """Written out in the configuration, which must not import Keras."""
    import stn
    from stn import samplers
    from stn.tool.data.distortions import DISTORTIONS

    def choices(key):
        kind = Config.model_fields[key].annotation
        literal = next((k for k in typing.get_args(kind) if typing.get_args(k)), kind)
        return typing.get_args(literal)

    assert choices("transform") == (*stn.TRANSFORMS, "none")
    assert choices("sampler") == samplers.SAMPLERS
    # The constant there is to choose is the background of the data.
    paddings = tuple(p for p in samplers.PADDINGS if p != "constant")
    assert choices("padding") == ("background", *paddings)
    assert choices("distort") == tuple(DISTORTIONS)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        Config(epochs=0, colour="rgb", seed=-1)
    assert [word in str(caught.value) for word in ("epochs=0", "'colour'", "seed=-1")] == [True] * 3
    assert len(str(caught.value).splitlines()) == 3


def test_config_cannot_be_changed_but_copied():
    before = Config(epochs=3, seed=5)
    with pytest.raises(ValueError, match="frozen"):
        before.epochs = 4
    after = before.replace(epochs=4)
    assert (before.epochs, after.epochs, after.seed) == (3, 4, 5)
    with pytest.raises(UserError, match="epochs=0"):
        before.replace(epochs=0)


def test_bounds_in_the_notation_of_toml():
    expected = {"angle": 0.8, "scale": [0.5, 2.0]}
    for text in ("angle = 0.8, scale = [0.5, 2]", "{ angle = 0.8, scale = [0.5, 2] }"):
        assert Config(bounds=text).bounds == expected
    command = Config(bounds=expected).to_command()
    assert command[-2:] == ["--bounds", "{ angle = 0.8, scale = [0.5, 2.0] }"]
    for wrong in ("angle: 0.8", "angle = ", "0.8"):
        with pytest.raises(UserError, match=f"Expected bounds as in .* Received: bounds='{wrong}"):
            Config(bounds=wrong)


# --- TOML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"recipe": "tutorial"},
        {"recipe": "tutorial", "epochs": 2, "patience": 0},
        {"patience": 0, "learning_rate": 1e-30, "weight_decay": 1e30, "augment": 0},
        {"data": 'folder:/a "b" \\c\té/😀', "data_dir": "C:\\temp\\new", "mirror": "http://x/#y"},
        {"image_size": 20, "output_size": 14, "distort": "TC", "deterministic": True},
        {"bounds": {"angle": 0.8, "scale": [0.5, 2]}, "pooling": 2, "gradient_clip": 1},
    ],
)
def test_toml_round_trip(values, tmp_path):
    before = Config(**values)
    file = tmp_path / "config.toml"
    file.write_text(before.to_toml(), encoding="utf-8")
    assert Config.load(file) == before


def test_a_resolved_configuration_does_not_follow_its_recipe(tmp_path):
    """What a file of before an option leaves out is not what the recipe says since."""
    file = tmp_path / "config.toml"
    before = Config(recipe="table1-st-cnn", localization_size=None)
    lines = before.to_toml().splitlines(keepends=True)
    assert any(line.startswith('keep = "last"') for line in lines)
    kept = [line for line in lines if not line.startswith("keep =")]
    file.write_text("".join(kept), encoding="utf-8")
    found = Config.restore(file)
    assert found == before.replace(keep="best")
    assert found.localization_size is None
    assert found.to_command()[-2:] == ["--keep", "best"]


def test_toml_names_and_explains_every_key():
    lines = Config().to_toml().splitlines()
    assert len(lines) == len(Config.model_fields)
    for line, (key, field) in zip(lines, Config.model_fields.items(), strict=True):
        assert line.removeprefix("# ").startswith(f"{key} =")
        assert line.endswith(f"  # {field.description}")
        assert field.description


def test_overrides_win_over_the_file_and_the_file_over_its_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "tutorial"\nepochs = 9\nseed = 3\n', encoding="utf-8")
    found = Config.load(file, epochs=2)
    assert (found.epochs, found.seed) == (2, 3)
    assert (found.model, found.batch_size) == ("reference", 1024)  # from the recipe
    assert Config.load(file, recipe="default").batch_size == Config().batch_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs = = 3\n", "Expected a readable TOML file. Received: .*wrong.toml"),
        (b"seed = 1\nseed = 2\n", "Expected a readable TOML file"),
        (b"data = '\xff'\n", "Expected a readable TOML file"),
        (b"epoch = 3\n", "did you mean 'epochs'"),
        (b"[train]\nepochs = 3\n", "Expected a known configuration key. Received: 'train'"),
        (b"epochs = '3'\n", "Expected epochs to be a valid integer. Received: epochs='3'"),
        (b"learning_rate = inf\n", "Expected learning_rate to be a finite number"),
        (b"recipe = ['tutorial']\n", "Expected recipe to be one of"),
        (b"recipe = {name = 'tutorial'}\n", "Expected recipe to be one of"),
    ],
)
def test_bad_file(content, message, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Config.load(file)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match=f"Expected a readable TOML file. Received: '{path}'"):
            Config.load(path)


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_says_what_it_is(name):
    assert Config(recipe=name).recipe == name
    description = recipes()[name]
    assert description
    assert "#" not in description


def test_recipe_gives_values_under_given_ones():
    tutorial = Config(recipe="tutorial", seed=1)
    assert (tutorial.model, tutorial.epochs, tutorial.patience) == ("reference", 100, 5)
    assert tutorial.seed == 1
    assert Config(recipe="tutorial", model="compact").model == "compact"


@pytest.mark.parametrize("name", ["tutorail", "", 3, None, ["tutorial"]])
def test_unknown_recipe_lists_the_known(name):
    with pytest.raises(UserError, match=r"one of .'default'.*'tutorial'"):
        Config(recipe=name)


# --- backends ------------------------------------------------------------------------------------


@pytest.fixture
def no_choice(monkeypatch, tmp_path):
    """Neither environment nor settings choose a backend, and Keras is not imported yet."""
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    return tmp_path


def only(*installed):
    return lambda name: object() if name in installed else None


def test_unknown_backend(no_choice):
    with pytest.raises(UserError, match=r"one of \('tensorflow', 'jax', 'torch'\).*'theano'"):
        select_backend("theano")


def test_order_of_choice(no_choice, monkeypatch):
    monkeypatch.setattr(util, "find_spec", only(*BACKENDS))
    assert select_backend(None) == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "")
    (no_choice / "keras.json").write_text('{"backend": "torch"}', encoding="utf-8")
    assert select_backend(None) == "torch"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert select_backend(None) == "jax"
    assert select_backend("tensorflow") == "tensorflow"
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.parametrize("content", ["{", "[]", '{"epsilon": 1}'])
def test_unreadable_keras_settings_choose_nothing(content, no_choice, monkeypatch):
    monkeypatch.setattr(util, "find_spec", only(*BACKENDS))
    (no_choice / "keras.json").write_text(content, encoding="utf-8")
    assert select_backend(None) == "tensorflow"


def test_missing_backend_says_what_to_type_and_does_not_fall_back(no_choice, monkeypatch):
    monkeypatch.setattr(util, "find_spec", only("torch"))
    with pytest.raises(UserError) as caught:
        select_backend("jax")
    assert 'type: pip install -e ".[jax]", or choose --backend torch' in str(caught.value)
    assert os.environ["KERAS_BACKEND"] == ""
    with pytest.raises(UserError, match=r'pip install -e "\.\[tensorflow\]", or'):
        select_backend(None)  # the default, not the one that is there


def test_backend_cannot_change_in_a_process(monkeypatch):
    import keras

    running = keras.backend.backend()
    assert select_backend(running) == running
    other = next(name for name in BACKENDS if name != running)
    monkeypatch.setattr(util, "find_spec", lambda name: True)  # as if it were installed
    with pytest.raises(UserError, match=f"already runs.*set KERAS_BACKEND={other} before"):
        select_backend(other)


def test_base_install_says_what_to_install(tmp_path):
    """Without any backend, the command says which one to install; nothing is imported."""
    site = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *a: "
        "None if name in ('tensorflow', 'jax', 'torch') else find(name, *a)\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('tensorflow', 'jax', 'torch', 'keras'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    (tmp_path / "sitecustomize.py").write_text(site, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-m", "stn.tool.cli", "train", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert 'pip install -e ".[tensorflow]"' in done.stderr
    assert "choose" not in done.stderr  # there is no other one
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_description_of_recipes_is_what_the_command_prints():
    done = subprocess.run(
        [sys.executable, "-m", "stn.tool.cli", "recipes", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == config.recipes()


def test_command_trains_the_same_again():
    from typer.testing import CliRunner

    for wanted in (
        Config(),
        Config(epochs=3, deterministic=True, data_dir="my files", distort="none"),
        Config(recipe="tutorial", patience=0, image_size=32, backend="jax"),
    ):
        words = wanted.to_command()
        assert words[:2] == ["stn", "train"]
        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "stn.train",
                lambda config, *args, _found=found, **kw: _found.append(config) or config,
            )
            patch.setattr("stn.tool.cli._start_backend", lambda name: None)
            patch.setattr("stn.tool.printing.print_run", lambda *args: None)
            CliRunner().invoke(cli.app, words[1:], catch_exceptions=False)
        assert found == [wanted]
    assert Config().to_command() == ["stn", "train"]
