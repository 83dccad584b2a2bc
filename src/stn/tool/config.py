"""What was asked: one flat, validated configuration, from recipe, TOML file and flags."""

from __future__ import annotations

import difflib
import enum
import json
import os
import tomllib
from importlib import resources, util
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

BACKENDS = ("tensorflow", "jax", "torch")
"""The backends of Keras this project runs on; each is called like its module."""


class Stream(enum.IntEnum):
    """What randomness is for; each use has numbers of its own, whatever the others draw."""

    TRAINING = 0
    VALIDATION = 1
    TEST = 2
    MONITOR = 3
    SWEEP = 4
    WALL = 5
    SCENES = 10
    ENCODER = 11
    COLOCALIZATION = 12


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what to do. Exit code 2."""


class Config(pydantic.BaseModel):
    """Everything that decides what a run does. The defaults are the default recipe.

    Values are taken from the recipe, then from what is given; unknown keys and wrong types are
    errors that name the key.

    Raises:
        UserError: On an unknown key, a wrong type or a value out of range.

    Example:
        >>> Config(recipe="tutorial", epochs=3).batch_size
        1024
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )

    recipe: str = Field("default", description="Recipe the values start from; see `stn recipes`.")

    data: str = Field("glyphs", description="Data set; see `stn data list`.")
    data_dir: str | None = Field(None, description="Folder that holds the files of the data set.")
    mirror: str | None = Field(None, description="Base URL to download the data set from.")
    image_size: int | None = Field(
        None,
        ge=1,
        description="Resize images to this many pixels square; a folder of all sizes needs it.",
    )
    color: Literal["auto", "grey", "rgb"] = Field("auto", description="Channels of the images.")
    task: Literal["classification", "addition", "colocalization"] = Field(
        "classification",
        description="What is learned: the class of an image, the sum of two digits, or where the "
        "object is that some images have in common.",
    )
    distort: Literal["none", "R", "RTS", "P", "E", "T", "TC"] | None = Field(
        None,
        description="Distortion, after Jaderberg et al. 2015; the usual one of the data if unset.",
    )
    object_class: str | None = Field(
        None, description="Class of the object to be found, for task colocalization."
    )
    augment: float | None = Field(
        None,
        ge=0,
        le=4,
        description="Strength of small random affine changes in training, before the distortion; "
        "0.5 without a distortion and 0 with one if unset.",
    )
    elastic: float = Field(
        0.0, ge=0, le=4, description="Strength of small random bends in training; 1: as under E."
    )
    sharp_epochs: int = Field(
        0, ge=0, description="Last epochs, in which training images are left as they are."
    )
    train_images: int | None = Field(
        None, ge=1, description="Learn from this many training images only, chosen by the seed."
    )
    validation: float = Field(
        0.1, gt=0, lt=1, description="Share of the training images held out for validation."
    )

    model: Literal["compact", "large", "reference", "template", "cnn", "fcn", "adder"] = Field(
        "compact", description="Architecture."
    )
    parameters: int | None = Field(
        None,
        ge=1,
        le=10**8,
        description="Make the classifier so wide that the model has about this many.",
    )
    standardize: bool = Field(
        False,
        description="Bring what each network sees to mean 0 and variance 1, image by image: for "
        "photographs in all sorts of light.",
    )
    transform: Literal[
        "translation",
        "rotation",
        "rigid",
        "attention",
        "scaling",
        "similarity",
        "affine",
        "projective",
        "tps",
        "flow",
        "diffeomorphic",
        "none",
    ] = Field(
        "affine", description="Family of transformations; none: the control without transformer."
    )
    heads: int = Field(1, ge=1, description="Transformations side by side, each of its own.")
    initialization: Literal["identity", "tiles"] = Field(
        "identity",
        description="Where the heads look at first: at the whole image, or each at its own tile.",
    )
    output_size: int | None = Field(
        None, ge=1, description="Size of the straightened image; the undistorted size if unset."
    )
    sampler: Literal["nearest", "bilinear", "bicubic", "lanczos3", "antialiased", "linearized"] = (
        Field("bilinear", description="How the transformer reads between pixels.")
    )
    padding: Literal["background", "zeros", "border", "reflection", "circular", "inward"] = Field(
        "background",
        description="What the transformer reads outside the image; background: the color that the "
        "edges of the training images have, or border if they differ.",
    )
    pooling: int = Field(
        1, ge=1, le=16, description="Sample this many times finer along both axes, and average."
    )
    iterations: int = Field(
        1, ge=1, description="How often the localization network looks, each time at the result."
    )
    localization_size: int | None = Field(
        None, ge=1, description="Size of the shrunk copy that the localization network sees."
    )
    bounds: dict[str, float | list[float]] | None = Field(
        None,
        description="Limits of the transformation: scale (factor), angle (radians), shear, shift "
        "(fraction of the image) and so on, for example angle = 0.8, scale = [0.5, 2].",
    )
    identity_penalty: float | None = Field(
        None, ge=0, description="Pull toward the identity; that of the architecture if unset."
    )
    frame_penalty: float = Field(
        0.0, ge=0, description="Pull back to the image of what is read outside."
    )
    localization_rate: float = Field(
        1.0, ge=0, description="Learning rate of the transformer, as a factor on that of the rest."
    )
    gradient_clip: float | None = Field(
        None, gt=0, description="Longest gradient of an image's loss to its transformation."
    )
    hold_epochs: int = Field(
        0, ge=0, description="Epochs in which the transformer stays at the identity."
    )

    epochs: int = Field(6, ge=1, description="Most epochs to train.")
    batch_size: int = Field(
        256, ge=1, description="Images a step; a last incomplete batch is left out."
    )
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of Adam.")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine",
        description="Course of the learning rate; cosine: one epoch of warm-up, then to 0.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="Label smoothing.")
    patience: int = Field(
        5,
        ge=0,
        description="Stop after this many epochs without a better validation loss; 0: never.",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights that are kept: those of the epoch with the smallest validation loss, "
        "or of the last, for where validation images are few and that choice is one of chance.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of everything random.")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="Of the layers' computation; weights, sampling and probabilities are float32. "
        "auto: bfloat16 where the hardware computes with it.",
    )
    steps_per_execution: int = Field(
        1,
        ge=1,
        description="Training steps between two readings of the loss; more are faster on a GPU.",
    )
    deterministic: bool = Field(
        False, description="Bit-for-bit repeatable computation, at some cost in speed."
    )
    tensorboard: bool = Field(
        False, description="Write numbers and pictures for TensorBoard too, into the run folder."
    )
    backend: Literal["tensorflow", "jax", "torch"] | None = Field(
        None, description="Keras backend; KERAS_BACKEND or the Keras setting if unset."
    )

    @pydantic.field_validator("bounds", mode="before")
    @classmethod
    def _read_bounds(cls, value: Any) -> Any:
        """Bounds from the command line, in the notation of a TOML file."""
        if not isinstance(value, str):
            return value
        try:
            return tomllib.loads(f"bounds = {{ {value.strip().strip('{}')} }}")["bounds"]
        except tomllib.TOMLDecodeError:
            raise ValueError("Expected bounds as in angle = 0.8, scale = [0.5, 2]") from None

    def __init__(self, **values: Any):
        try:
            super().__init__(**{**_read_recipe(values.get("recipe", "default")), **values})
        except pydantic.ValidationError as error:
            raise UserError("\n".join(_explain(e) for e in error.errors())) from None

    @classmethod
    def load(cls, path: str | os.PathLike[str], **overrides: Any) -> Config:
        """Read a configuration from a TOML file; keywords win over the file.

        Raises:
            UserError: If the file cannot be read, or holds something that is not valid.
        """
        return cls(**{**_read_toml(path), **overrides})

    @classmethod
    def restore(cls, path: str | os.PathLike[str]) -> Config:
        """Read what `to_toml` wrote, whatever its recipe says by now.

        What the file leaves out was unset, or had no name yet; then it is as without a recipe.

        Raises:
            UserError: If the file cannot be read, or holds something that is not valid.
        """
        usual = {key: field.default for key, field in cls.model_fields.items()}
        if not (values := _read_toml(path)):
            raise UserError(
                f"Expected the configuration of a run. Received: {os.fspath(path)!r}, an empty file"
            )
        try:
            return cls(**{**usual, **values})
        except UserError as error:
            raise UserError(f"{error}. That is in {os.fspath(path)}") from error

    def to_toml(self) -> str:
        """All values as TOML, one a line with its description; unset ones are comments.

        Example:
            >>> "batch_size = 7  " in Config(batch_size=7).to_toml()
            True
        """
        lines = []
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            text = f"# {key} =" if value is None else f"{key} = {_to_toml(value)}"
            lines.append(f"{text}  # {field.description}")
        return "\n".join(lines) + "\n"

    def to_command(self) -> list[str]:
        """The words of a command that trains exactly this; what its recipe says is left out.

        Example:
            >>> Config(epochs=3, deterministic=True).to_command()
            ['stn', 'train', '--epochs', '3', '--deterministic']
        """
        words = ["stn", "train"]
        usual = type(self)(recipe=self.recipe).model_dump() | {"recipe": "default"}
        for key, value in self.model_dump().items():
            if value is None or value == usual[key]:
                continue
            option = key.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                written = value if isinstance(value, str) else _to_toml(value)
                words += [f"--{option}", written]
        return words

    def replace(self, **values: Any) -> Config:
        """A copy with other values, validated."""
        return type(self)(**{**self.model_dump(), **values})


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path that is meant, `~` and all.

    Raises:
        UserError: If it cannot be one, or cannot be named in a report.
    """
    try:
        found = Path(path).expanduser().absolute()
        str(found).encode()
    except (RuntimeError, UnicodeEncodeError) as error:  # "~" and the name of nobody; other bytes
        raise UserError(
            f"Expected the path of a folder. Received: {os.fspath(path)!r} ({error})"
        ) from error
    return found


def locate(data: str) -> str:
    """The same data set by a name that holds from everywhere: a `folder:` by its absolute path.

    Example:
        >>> locate("mnist")
        'mnist'
    """
    kind, _, folder = data.partition(":")
    return f"folder:{absolute(folder)}" if kind == "folder" and folder else data


def _read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"Expected a readable TOML file. Received: {os.fspath(path)!r} ({error})"
        ) from None


def _to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_to_toml(part)}" for key, part in value.items()) + " }"
    # JSON writes strings, numbers and booleans as TOML does, but for escaped surrogates.
    return json.dumps(value, ensure_ascii=False)


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "?"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(Config.model_fields)}"
        return f"Expected a known configuration key. Received: {key!r}; {hint}"
    wanted = error["msg"].replace("Input should be", f"Expected {key} to be")
    wanted = wanted.removeprefix("Value error, ")
    return f"{wanted}. Received: {key}={error['input']!r}"


def recipes() -> dict[str, str]:
    """The named recipes, and the first comment line of each as its description."""
    found = {"default": "The defaults: the compact model, best accuracy for its time."}
    for file in sorted(_recipe_folder().iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            first = file.read_text(encoding="utf-8").splitlines()[0]
            found[file.name.removesuffix(".toml")] = first.lstrip("# ")
    return found


def _read_recipe(name: Any) -> dict[str, Any]:
    """The values a recipe sets.

    Raises:
        UserError: If there is no such recipe.
    """
    return {} if name == "default" else {"recipe": name, **tomllib.loads(recipe_text(name))}


def recipe_text(name: Any) -> str:
    """A recipe as TOML, as it was written; of the default, all values.

    Raises:
        UserError: If there is no such recipe.

    Example:
        >>> 'model = "reference"' in recipe_text("tutorial")
        True
    """
    if not isinstance(name, str) or name not in recipes():
        raise UserError(f"Expected recipe to be one of {tuple(recipes())}. Received: {name!r}")
    if name == "default":
        return Config().to_toml()
    return (_recipe_folder() / f"{name}.toml").read_text(encoding="utf-8")


def _recipe_folder() -> Any:
    return resources.files("stn.tool") / "recipes"


def select_backend(name: str | None) -> str:
    """Decide on a Keras backend and make sure it is there, before Keras is imported.

    Args:
        name: One of `BACKENDS`, or None for `KERAS_BACKEND` or the Keras settings file.

    Returns:
        The name.

    Raises:
        UserError: If it is unknown, not installed, or Keras already runs on another.
    """
    import sys

    chosen = name or os.environ.get("KERAS_BACKEND") or _backend_in_settings() or "tensorflow"
    if chosen not in BACKENDS:
        raise UserError(f"Expected backend to be one of {BACKENDS}. Received: {chosen!r}")
    if util.find_spec(chosen) is None:
        installed = [other for other in BACKENDS if util.find_spec(other)]
        instead = f", or choose --backend {' or '.join(installed)}" if installed else ""
        raise UserError(
            f"Expected the {chosen!r} backend to be installed. Received: no module "
            f'{chosen!r}; type: pip install -e ".[{chosen}]"{instead}'
        )
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != chosen:
        raise UserError(
            f"Expected backend {running!r}, on which Keras already runs in this process. "
            f"Received: {chosen!r}; set KERAS_BACKEND={chosen} before Keras is imported"
        )
    os.environ["KERAS_BACKEND"] = chosen
    return chosen


def _backend_in_settings() -> str | None:
    home = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser())
    try:
        return json.loads((home / "keras.json").read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        return None
