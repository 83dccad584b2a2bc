"""Where a run takes place: versions, backend, hardware, source revision."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras

import stn
from stn.tool import runs
from stn.tool.config import UserError


def describe(otherwise: str = "stn train --config config.toml") -> dict[str, Any]:
    """Versions, backend, hardware, source revision, time and command: where numbers come from.

    Args:
        otherwise: The command, where this process was not started by one.
    """
    backend = keras.backend.backend()
    return {
        "format": runs.FORMAT,
        "stn": stn.__version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": backend,
        "backend_version": version_of(backend),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "device": device_name(),
        "revision": _revision(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["stn", *sys.argv[1:]])
        if Path(sys.argv[0]).name in ("stn", "stn.exe")
        else otherwise,
    }


def version_of(backend: str) -> str:
    """The installed version of a backend."""
    return installed_version(backend, f"{backend}-cpu") or "unknown"


def installed_version(*distributions: str) -> str | None:
    """The version of the first of some distributions that is installed; None without any."""
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None


def devices() -> list[str]:
    """The devices Keras sees, as the backend calls them."""
    if keras.backend.backend() != "torch":
        return keras.distribution.list_devices()
    import torch  # of which keras.distribution knows nothing

    if torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def has_accelerator() -> bool:
    """Whether Keras sees anything but CPUs."""
    return any("cpu" not in device.lower() for device in devices())


def device_name() -> str:
    """What the maker calls the accelerator; "cpu" if there is none."""
    if not has_accelerator():
        return "cpu"
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "mps"
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpu[0])["device_name"] if gpu else "?"


def fast_precision() -> str:
    """`"bfloat16"` where the hardware computes with it, `"float32"` where that would be emulated.

    Emulated, a step takes several times as long as in float32.
    """
    return "bfloat16" if _computes_bfloat16() else "float32"


def _computes_bfloat16() -> bool:
    backend = keras.backend.backend()
    if not has_accelerator():
        # XLA converts to float32 and back on every CPU.
        features = set((_cpuinfo("flags") or "").split())
        return backend != "jax" and not features.isdisjoint({"avx512_bf16", "amx_bf16"})
    if backend == "torch":
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        version = getattr(device, "compute_capability", "0")  # "8.0"; a name on AMD's GPUs
        return device.platform == "tpu" or (version[0].isdigit() and float(version) >= 8)
    import tensorflow as tf

    if tf.config.list_physical_devices("TPU"):
        return True
    gpu = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpu[0]) if gpu else {}
    return details.get("compute_capability", (0, 0)) >= (8, 0)


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str | None:
    """What Linux says of the first processor; None elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _revision() -> str | None:
    """The git revision of the source, if it runs from a checkout; "+" if that was changed."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an error in a checkout of something else
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def make_deterministic() -> None:
    """Make the backend compute the same bits every time, for the rest of the process.

    Raises:
        UserError: If it is too late for that: JAX on an accelerator reads the wish only when it
            starts.
    """
    backend = keras.backend.backend()
    if backend == "jax" and has_accelerator():
        flag = "--xla_gpu_deterministic_ops=true"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            raise UserError(
                f"Expected XLA_FLAGS={flag} in the environment, for JAX to be deterministic on a "
                f"GPU. Received: XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}; set it and start "
                "again"
            )
    if backend == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)
