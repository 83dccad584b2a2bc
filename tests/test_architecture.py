"""The shape of the house: who imports whom, what starting costs, what is documented."""

import ast
import doctest
import importlib
import inspect
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import stn
from stn.tool import cli

SOURCE = Path(stn.__file__).parent
LIBRARY = (
    "grids",
    "filters",
    "bilinear",
    "separable",
    "symbolic",
    "samplers",
    "families",
    "matrices",
    "deformations",
    "transforms",
    "localizations",
    "layers",
    "probing",
    "models",
)
HEAVY = {"keras", "tensorflow", "jax", "torch"}
BACKENDS_THEMSELVES = ("filters", "bilinear", "separable", "deformations")  # what Keras cannot say


# --- imports -------------------------------------------------------------------------------------


def parse(path):
    return ast.parse((SOURCE / path).read_text(encoding="utf-8"))


def imported(nodes):
    """The dotted names of all modules, or names in modules, that these nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def nodes_at_import(tree):
    """Every node that runs when the module is imported: all but the bodies of functions."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("module", LIBRARY)
def test_library_imports_only_what_is_below(module):
    names = imported(ast.walk(parse(f"{module}.py")))
    own = {name.split(".")[1] for name in names if name.split(".")[0] == "stn"}
    below = set(LIBRARY[: LIBRARY.index(module)])
    assert own <= below, f"{module} imports {own - below}"
    others = {name.split(".")[0] for name in names} - {"stn"} - set(sys.stdlib_module_names)
    # Which ask for them only when they run.
    backends = {"jax", "tensorflow", "torch"} if module in BACKENDS_THEMSELVES else set()
    assert others <= {"keras", "numpy", "__future__"} | backends
    at_import = imported(nodes_at_import(parse(f"{module}.py")))
    assert not {name.split(".")[0] for name in at_import} & {"jax", "tensorflow", "torch"}


def test_library_is_complete():
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert modules == set(LIBRARY), "name a new module in LIBRARY, where it belongs in the order"


@pytest.mark.parametrize(
    "module",
    [
        "__init__",
        "tool/__init__",
        "tool/cli",
        "tool/config",
        "tool/runs",
        "tool/benchmark/__init__",
    ],
)
def test_light_modules_import_nothing_heavy(module):
    names = {name.split(".")[0] for name in imported(nodes_at_import(parse(f"{module}.py")))}
    assert not names & (HEAVY | {"numpy", "matplotlib", "PIL"})


# --- the cost of starting ------------------------------------------------------------------------


def verbs(command, path=()):
    """All commands under one, as their arguments."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*path, name))


VERBS = list(verbs(typer.main.get_command(cli.app)))


def test_verbs_are_found():
    expected = {"train", "evaluate", "predict", "report", "recipes", "data", "data list"}
    assert expected <= {" ".join(verb) for verb in VERBS}


def start(code):
    """Run Python code; return the heavy modules it imported and the CPU seconds it took.

    CPU seconds, because on a busy machine the clock on the wall measures the neighbors.
    """
    code += (
        "\nimport json, sys, time"
        "\nprint('\\n' + json.dumps([sorted(sys.modules), time.process_time()]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    modules, seconds = json.loads(result.stdout.splitlines()[-1])
    return {name.split(".")[0] for name in modules} & HEAVY, seconds, result.stdout


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments",
    [None, *VERBS],
    ids=["import stn", *(" ".join(["stn", *verb]) for verb in VERBS)],
)
def test_starts_fast_without_a_backend(arguments):
    code, shown = "import stn; stn.__version__; dir(stn)", ""
    if arguments is not None:
        shown = "Usage: "
        code = (
            "from stn.tool.cli import app\n"
            f"try: app({[*arguments, '--help']!r}, prog_name='stn')\n"
            "except SystemExit as exit: assert exit.code == 0, exit.code"
        )
    fastest = float("inf")
    for _ in range(3):
        heavy, seconds, output = start(code)
        assert not heavy
        assert shown in output
        fastest = min(fastest, seconds)
        if fastest < 1:
            break
    assert fastest < 1, f"took {fastest:.2f} s of CPU time"


def test_backend_can_be_chosen_after_the_import():
    wanted = os.environ.get("KERAS_BACKEND", "tensorflow")
    code = (
        "import os, stn\n"
        f"os.environ['KERAS_BACKEND'] = {wanted!r}\n"
        "stn.warp\n"
        "import keras\n"
        f"assert keras.backend.backend() == {wanted!r}"
    )
    heavy, _, _ = start(code)
    assert "keras" in heavy


@pytest.mark.once
def test_reports_need_no_backend():
    heavy, _, _ = start("import stn.tool.report, stn.tool.comparison")
    assert not heavy & {"keras", "tensorflow", "jax", "torch"}


@pytest.mark.once
def test_a_saved_model_loads_after_both_imports(tmp_path):
    model = stn.classifier(num_classes=2, input_shape=(8, 8, 1))
    model.save(tmp_path / "model.keras")
    code = f"import keras, stn\nkeras.saving.load_model({str(tmp_path / 'model.keras')!r})"
    assert "keras" in start(code)[0]


# --- names and documentation ---------------------------------------------------------------------


def test_public_names():
    assert stn.__all__ == sorted(stn.__all__)
    assert len(stn.__all__) <= 25, "about twenty public names"
    assert set(stn.__all__) <= set(dir(stn))
    for name in stn.__all__:
        assert getattr(stn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'wrap'"):
        _ = stn.wrap


def test_type_checkers_see_every_public_name():
    tree = parse("__init__.py")
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    homes = {name: f"{module}.{name}" for module, names in stn._HOMES.items() for name in names}
    assert imported(block.body) == set(homes.values())


FUNCTIONS = [name for name in stn.__all__ if name.islower() and not name.startswith("_")]


@pytest.mark.parametrize("name", [name for name in stn.__all__ if name != "__version__"])
def test_every_public_name_has_a_docstring(name):
    value = getattr(stn, name)
    if callable(value):
        text = value.__doc__ or ""
    else:  # a constant: the string below the assignment
        body = parse(f"{stn._HOME_OF[name].removeprefix('stn.').replace('.', '/')}.py").body
        targets = [
            [ast.unparse(target) for target in getattr(node, "targets", [])]
            + ([ast.unparse(node.target)] if isinstance(node, ast.AnnAssign) else [])
            for node in body
        ]
        (at,) = [i for i, names in enumerate(targets) if name in names]
        text = ast.literal_eval(ast.unparse(body[at + 1]))
    summary = text.split("\n")[0]
    assert 10 < len(summary) <= 100
    assert summary.endswith(".")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_document_arguments_results_and_errors(name):
    function = getattr(stn, name)
    text = inspect.getdoc(function)
    for section in ("Args", "Returns", "Raises", "Example"):
        assert f"\n{section}:\n" in text, f"{name} has no section {section}"
    documented = text.split("\nArgs:\n")[1].split("\n\n")[0]
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}:" in documented or f"**{parameter}:" in documented, parameter


@pytest.mark.parametrize("name", ["SpatialTransformer", "Transform", "Config"])
def test_public_classes_have_an_example(name):
    assert "\nExample:\n" in inspect.getdoc(getattr(stn, name))


@pytest.mark.parametrize("name", ["SpatialTransformer", "Transform", "Config", "Run"])
def test_public_methods_have_a_docstring(name):
    for key, member in vars(getattr(stn, name)).items():
        if not key.startswith("_") and inspect.isfunction(member):
            assert (member.__doc__ or "").split("\n")[0].endswith("."), key


@pytest.mark.once
@pytest.mark.parametrize("module", LIBRARY)
def test_examples_run(module):
    module = importlib.import_module(f"stn.{module}")
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=output.write)
    assert runner.tries > 0
    assert runner.failures == 0, output.getvalue()
