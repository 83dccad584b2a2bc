"""The `stn` command: parse, call, print. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import contextlib
import datetime
import errno
import gc
import io
import itertools
import json
import os
import sys
import tempfile
import tomllib
import types
import typing
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

import stn
from stn.tool import config, runs

app = typer.Typer(
    name="stn",
    help="Spatial transformer networks: train one, see what it learned, use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run folder, or a .keras file inside one.")
]
Backend = Annotated[str | None, typer.Option(help="Keras backend; the run's if unset.")]


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# The disk, what a user may have of it, or what a process may write.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def main() -> None:
    """Run the command line; the entry point of the `stn` script."""
    # TensorFlow reports its version of events on standard error unless told not to.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app(prog_name="stn")
    except config.UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("Interrupted", 130)
    except OSError as error:
        # A place that cannot be written to is the user's mistake; a disk that fills up is not.
        wrong_place = error.errno in (*_FORBIDDEN, errno.ENOENT, errno.ENOTDIR)
        _fail(_explain_os_error(error), 2 if wrong_place else 1)
    except MemoryError as error:
        _fail(f"Not enough memory ({error}). Use a smaller --image-size, or fewer images", 1)
    except RuntimeError as error:
        if type(error).__name__ != "TrainingError":  # its module would import Keras
            raise
        _fail(str(error), 1)


@contextlib.contextmanager
def _place(out: Path | None, wanted: config.Config) -> Iterator[Path]:
    """Where a run goes; by default a new folder, which no other process has.

    It is gone again if nothing was written into it.
    """
    if out is not None:
        yield out
        return
    kind, _, path = wanted.data.partition(":")
    data = f"{kind}-{Path(path).absolute().name[:60]}" if path else kind.replace("/", "-")
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = f"{data}-{wanted.transform}-{now}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    for out in map(Path("runs").joinpath, names):
        try:
            out.mkdir(parents=True)
            break
        except FileExistsError:
            if not out.exists():
                raise
    assert out is not None
    try:
        yield out
    finally:
        for folder in (out, out.parent):
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def _written(out: Path) -> int | None:
    """When the configuration in a run folder was written; None if there is none."""
    file = runs.Run(out).config_file
    return file.stat().st_mtime_ns if file.is_file() else None


def _forget_iterators() -> None:
    """To be called after an interrupted training, outside of the `except`.

    TensorFlow's iterators are in the frames of the exception: they would be ended after the
    interpreter, and complain or wait.
    """
    gc.collect()


def _fail(message: str, code: int) -> typing.NoReturn:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]stn:[/] ", end="")
    console.print(message, markup=False)
    sys.exit(code)


def _explain_os_error(error: OSError, *, again: str = "try again") -> str:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in _FULL:
        full = "The disk is full" if error.errno == errno.ENOSPC else error.strerror
        return f"{full}{where}. Nothing was left half-written; make room and {again}"
    if error.errno in _FORBIDDEN:
        return f"No permission to write{where}. Choose a place where you may write"
    return f"{error.strerror or error}{where}"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stn {stn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# The first option of each panel of the help.
_PANELS = {"data": "Data", "model": "Model and transformer", "epochs": "Training"}


def _config_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every field of the configuration."""
    own = list(signature(function, eval_str=True).parameters.values())
    own = [p for p in own if p.kind is not p.VAR_KEYWORD]
    fields, switches = [], []
    panel = "Options"
    for name, field in config.Config.model_fields.items():
        kind, choices = _option_type(field.annotation)
        default = "" if field.default is None else f" [dim]\\[default: {field.default}][/dim]"
        text = (field.description or "") + (f" One of: {', '.join(choices)}." if choices else "")
        panel = _PANELS.get(name, panel)
        # Switches apart: their second names would leave the others no room on 80 columns.
        beside, where = (switches, "Switches") if kind is bool else (fields, panel)
        option = typer.Option(help=text + default, show_default=False, rich_help_panel=where)
        beside.append(
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    fields += switches
    function.__signature__ = Signature([*own, *fields])  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in [*own, *fields]}
    return function


def _option_type(annotation: Any) -> tuple[type, tuple[str, ...]]:
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(parts[0]) is typing.Literal:
        return str, typing.get_args(parts[0])
    if typing.get_origin(parts[0]) is dict:
        return str, ()
    return parts[0], ()


_DISTORTIONS = ", ".join(_option_type(config.Config.model_fields["distort"].annotation)[1])


def _train(
    config_file: Annotated[
        Path | None, typer.Option("--config", help="TOML file of values; flags win over it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder to write. [dim]\\[default: runs/DATA-TRANSFORM-TIME][/dim]"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run, exactly where it stopped.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the growing report in the browser meanwhile.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="With --watch: where; any free one if unset."),
    ] = None,
    json_: Json = False,
    **flags: Any,
) -> None:
    """Train a classifier with a spatial transformer in front; show what it learns.

    Without any option it needs no files, no network, and a few minutes.
    """
    flags = {key: value for key, value in flags.items() if value is not None}
    if port is not None and not watch:
        raise config.UserError("Expected --port together with --watch. Received: --port alone")
    if resume is not None:
        if out not in (None, resume) or overwrite:
            raise config.UserError("Expected --resume alone. Received: --out or --overwrite too")
        values = runs.Run.open(resume).config.model_dump()
        if config_file is not None:
            values |= config.Config.load(config_file).model_dump(exclude_unset=True)
        wanted, out = config.Config(**{**values, **flags}), resume
    elif config_file is not None:
        wanted = config.Config.load(config_file, **flags)
    else:
        wanted = config.Config(**flags)

    from stn.tool.progress import Progress

    progress = Progress()
    _start_backend(wanted.backend)
    with _place(out, wanted) as out:
        watched = _watched(out, port, progress, new=resume is None)
        run = _train_into(
            out,
            wanted,
            progress,
            watched if watch else contextlib.nullcontext(),
            resume=resume is not None,
            overwrite=overwrite,
        )
    if json_:
        typer.echo(json.dumps({"run": str(run.path), **run.metrics}))
        return
    from stn.tool import printing

    printing.print_run(run, progress.console)


def _train_into(
    out: Path, wanted: config.Config, progress: Any, watched: Any, *, resume: bool, overwrite: bool
) -> runs.Run:
    """Train, or end the process with how to go on."""
    run, before = None, _written(out)
    on = f"stn train --resume {out}"
    try:
        with watched:
            run = stn.train(wanted, out, resume=resume, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        pass
    except OSError as error:
        if error.errno not in _FULL or not (resume or _written(out) != before):
            raise
        error.filename = error.filename or str(out)
        _fail(_explain_os_error(error, again=f"go on with: {on}"), 1)
    if run is None:
        _forget_iterators()
        if resume or _written(out) != before:
            _fail(f"Interrupted. Go on with: {on}", 130)
        _fail("Interrupted before anything was written", 130)
    return run


@contextlib.contextmanager
def _watched(out: Path, port: int | None, progress: Any, *, new: bool) -> Iterator[None]:
    from stn.tool import watching

    with watching.serve(runs.Run(out), port=port or 0, new=new) as address:
        progress.say(f"Watch it at {address}")
        yield


app.command("train")(_config_options(_train))


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="table1: distorted MNIST.")],
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help="Which, separated by commas: R/st-cnn-affine, a column (RTS), a row (st-cnn-tps), "
            "or patterns ('R/st-*'). [dim]\\[default: all][/dim]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs. [dim]\\[default: runs/TABLE][/dim]"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of each cell, separated by commas.")] = "42",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the files of MNIST.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Base URL to download them from.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each cell, for a trial; else the recipe's.")
    ] = None,
    steps_per_execution: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps between two readings of the loss; more are faster on a GPU."
        ),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Keras backend.")] = None,
    json_: Json = False,
) -> None:
    """Train a table of a paper anew, cell by cell, and print it beside the paper's.

    What is in the folder already is kept, and what was interrupted goes on.
    Other cells can be trained at the same time, in the same folder.
    """
    from stn.tool import printing, reproduction

    if table != "table1":
        raise config.UserError(f"Expected the table to be 'table1'. Received: {table!r}")
    patterns = [part.strip() for text in cells or [] for part in text.split(",") if part.strip()]
    if cells and not patterns:
        raise config.UserError(
            "Expected cells such as R/st-cnn-affine; all without --cells. "
            f"Received: --cells {cells[0]!r}"
        )
    chosen = reproduction.choose(patterns)
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise config.UserError(
            f"Expected seeds as in 42,43,44. Received: --seeds {seeds!r}"
        ) from None
    out = out or Path("runs") / table
    given = {
        "data_dir": data_dir and str(data_dir),
        "mirror": mirror,
        "epochs": epochs,
        "steps_per_execution": steps_per_execution,
    }
    values = {key: value for key, value in given.items() if value is not None}
    for seed in numbers:  # mistakes in any value first
        reproduction.configure(chosen[0], seed=seed, backend=backend, **values)

    from stn.tool.progress import Progress

    _start_backend(backend)
    progress = Progress()
    results = None
    with contextlib.suppress(KeyboardInterrupt):
        results = reproduction.reproduce(
            chosen, out, seeds=numbers, progress=progress, backend=backend, **values
        )
    if results is None:
        _forget_iterators()
        _fail(f"Interrupted; what is done is kept in {out}. The same command goes on", 130)
    if json_:
        typer.echo(json.dumps(results))
        return
    printing.print_paper(results, progress.console)
    typer.echo(out / "table1.json")


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="Another data set, of classes it knows.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of its files.")] = None,
    distort: Annotated[
        str | None, typer.Option(help=f"Another distortion. One of: {_DISTORTIONS}.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Disturb test images more and more, and see how much the transformer takes back: "
            "rotation, scale, translation, shear, noise or occlusion."
        ),
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="With --sweep: a run without transformer, to compare.")
    ] = None,
    backend: Backend = None,
    json_: Json = False,
) -> None:
    """Test a trained model: loss, accuracy, per-class accuracy, confusion."""
    opened = runs.Run.open(run)
    if sweep is None and control is not None:
        raise config.UserError(
            "Expected --control together with --sweep. Received: --control alone"
        )
    if sweep is not None and (data, data_dir, distort) != (None, None, None):
        raise config.UserError(
            "Expected --sweep without --data, --data-dir and --distort. Received: one of them too"
        )
    _start_backend(backend or opened.config.backend)
    if sweep is not None:
        _sweep(run, sweep, control, backend, json_)
        return
    results = stn.evaluate(
        run,
        data=data,
        data_dir=data_dir,
        distort=distort,
        backend=backend,
    )
    if json_:
        typer.echo(json.dumps(results))
        return
    from stn.tool import printing
    from stn.tool.data import training_files

    printing.print_accuracy(results)
    drawn = data and training_files(data, opened.config.seed)
    if drawn and drawn != opened.dataset.get("training_files"):
        typer.echo(
            f"They are a part of what is in {data}, which has no folder test. To test all of it, "
            "move its folders into one of that name, and give the folder around that"
        )


def _sweep(run: Path, kind: str, control: Path | None, backend: str | None, json_: bool) -> None:
    from stn.tool import printing, sweeps
    from stn.tool.progress import Progress

    with Progress().step(f"Sweep over {kind}"):
        results = sweeps.sweep(run, kind, control=control, backend=backend)
    if json_:
        typer.echo(json.dumps(results))
        return
    printing.print_sweep(results, kind)
    picture = runs.Run(run).sweep_file(kind).with_suffix(".png")
    typer.echo(f"{picture}, and .json and .csv beside it; `stn report {run}` shows it too")


@app.command()
def predict(
    model: Model,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help="Image files; folders, with all images in them; quoted patterns such as "
            "'scans/**/*.png'; or - for standard input: one image, or such paths, one per line.",
        ),
    ],
    save_straightened: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for what the transformer makes of each image, as PNG."
        ),
    ] = None,
    backend: Backend = None,
    json_: Json = False,
    csv_: Annotated[
        bool, typer.Option("--csv", help="Print CSV, and nothing else, to stdout.")
    ] = False,
) -> None:
    """Classify images, grey or color, dark on light or light on dark, of any size.

    Reads PNG, JPEG, WebP, TIFF, BMP, GIF and PPM; every frame or page is an
    image, FILE#0, FILE#1 and so on. What cannot be used is reported and left
    out, and the exit code is 1 then.
    """
    from stn.tool import evaluation, prediction, printing

    if json_ and csv_:
        raise config.UserError("Expected --json or --csv. Received: both")
    run = evaluation.open_run(model)
    _start_backend(backend or run.config.backend)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file may have any bytes for a name
    watch = printing.Watch(live=not (json_ or csv_) or not sys.stdout.isatty())
    results = watch.over(
        prediction.predict_each(
            run, paths, backend=backend, save_straightened=save_straightened, on_error=watch.failed
        )
    )
    columns = ["image", "class", "probability"] + ["straightened"] * (save_straightened is not None)
    with contextlib.closing(results):  # and the bar with it, whatever happens
        if json_:
            printing.print_json(results)
        elif csv_:
            printing.print_csv(results, columns)
        else:
            printing.print_tables(results, columns, watch)
    watch.sum_up()
    if watch.failures:
        raise typer.Exit(1)


@app.command()
def inspect(
    model: Model,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")],
    out: Annotated[Path | None, typer.Option(help="PNG to write.")] = None,
    backend: Backend = None,
    json_: Json = False,
) -> None:
    """Look at one image: where the transformer looks, what comes out, and what it is taken for.

    Terminals that can show pictures do; for others a PNG is written.
    """
    from stn.tool import evaluation, terminal

    run = evaluation.open_run(model)
    _start_backend(backend or run.config.backend)
    from stn.tool import inspection, pictures  # import Keras

    if json_:
        typer.echo(json.dumps(stn.inspect(run, image, out=out, backend=backend)))
        return
    found, picture = inspection.look(run, image, backend=backend)
    way = terminal.protocol() if sys.stdout.isatty() else None
    if out is None and way is None:
        out = Path(f"{Path(found['image']).stem}-inspected.png")
    if out is None and way is not None:
        typer.echo(terminal.encode(picture, way), nl=False)
    if "words" in found:
        typer.echo(found["words"])
    typer.echo(", ".join(f"{one['class']} {one['probability']:.1%}" for one in found["classes"]))
    if out is not None:
        pictures.save(picture, out)
        typer.echo(out)


@app.command()
def compare(
    compared: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("compare.html"),
    json_: Json = False,
) -> None:
    """Put runs beside each other: their numbers as a table, their pictures on a page."""
    results = stn.compare(compared, out=out)
    if json_:
        typer.echo(json.dumps(results))
        return
    from stn.tool import printing

    printing.print_comparison(results)


@app.command()
def report(
    run: RunFolder,
    control: Annotated[
        Path | None, typer.Option(help="A run without transformer, to put its numbers beside.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write the one-page report of a run again, also of one that is not finished."""
    page = stn.write_report(runs.Run.open(run), control=control)
    typer.echo(json.dumps({"report": str(page), "bytes": page.stat().st_size}) if json_ else page)


@app.command()
def bench(
    topic: Annotated[
        str, typer.Argument(metavar="[sampler|train|predict|import]", help="What to measure.")
    ] = "sampler",
    against: Annotated[
        str | None,
        typer.Option(
            help="Whom to compare with: torch,kornia,keras,opencv,scipy, or some of them; "
            "all if unset."
        ),
    ] = None,
    json_: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout and nothing else."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Keras backend.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns each one has.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="sampler: images of this shape only, such as 64x28x28x3; repeatable."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shapes, to see that it works; no real numbers.")
    ] = False,
) -> None:
    """Measure speed and memory here, beside other libraries that are installed.

    All run in one process and take turns; what is compared has been checked
    to agree.
    """
    from rich.console import Console

    from stn.tool import benchmark
    from stn.tool.progress import Progress

    options = benchmark.Options.of(topic, against, shape, rounds=rounds, quick=quick)
    # JAX would take most of the memory of an accelerator, and leave none to others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _start_backend(backend)
    record = benchmark.measure(options, Progress())
    if json_ is not None and str(json_) == "-":
        typer.echo(json.dumps(record))
        return
    from stn.tool.benchmark import tables

    if json_ is not None:
        runs.write_json(json_, record)
    tables.show(record, Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True))


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="One of them, to print it: what it sets and comes to.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the recipes, or print one as a TOML file that --config takes."""
    if name is not None:
        text = config.recipe_text(name)
        typer.echo(json.dumps(tomllib.loads(text)) if json_ else text, nl=json_)
        return
    found = config.recipes()
    if json_:
        typer.echo(json.dumps(found))
        return
    from stn.tool import printing

    printing.print_recipes(found)


@data_app.command("list")
def data_list(json_: Json = False) -> None:
    """List the data sets."""
    from stn.tool.data import SOURCES

    if json_:
        import dataclasses

        typer.echo(json.dumps([dataclasses.asdict(source) for source in SOURCES.values()]))
        return
    from stn.tool import printing

    printing.print_sources(SOURCES.values())


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("data.png"),
    data_dir: Annotated[Path | None, typer.Option(help="Folder of its files.")] = None,
    split: Annotated[str, typer.Option(help="train or test.")] = "test",
    count: Annotated[int, typer.Option(min=1, max=1000, help="Number of images.")] = 64,
    image_size: Annotated[int | None, typer.Option(help="Resize images of a folder.")] = None,
    distort: Annotated[str, typer.Option(help=f"Distortion. One of: {_DISTORTIONS}.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Chooses and distorts the images.")] = 42,
) -> None:
    """Draw some images of a data set, with their labels; undistorted unless asked."""
    import numpy as np

    from stn.tool import data, pictures
    from stn.tool.data import distortions

    distort = config.Config(distort=distort).distort or "none"
    if distort != "none":
        _start_backend(None)
    loaded = data.load(name, data_dir=data_dir, splits=(split,), image_size=image_size, seed=seed)
    images = getattr(loaded, split)
    images = images.take(np.random.default_rng(seed).permutation(len(images))[:count])
    distortion, distorted = distortions.DISTORTIONS[distort], ""
    if distort != "none":
        from stn.tool import tasks

        color, _ = tasks.background_of(images.images)
        distortion, distorted = distortion.on(color), f", {distort} distortion"
    picture = pictures.draw_frame(
        distortions.distort_all(images.images, distortion, seed),
        None,
        None,
        title=name,
        subtitle=f"{len(images)} images of the {split} split{distorted}",
        captions=[loaded.class_names[label] for label in images.labels],
        columns=16,
        legend=False,
    )
    pictures.save(picture, out)
    typer.echo(out)


def _start_backend(name: str | None) -> None:
    """Import Keras on a backend, without what the backend has to say about itself."""
    config.select_backend(name)
    with _quiet_stderr():
        from stn.tool import environment

        environment.devices()  # TensorFlow now complains if there is no GPU


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hold back standard error, of C code too; shown after all if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        original = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(original, held.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


if __name__ == "__main__":
    main()
