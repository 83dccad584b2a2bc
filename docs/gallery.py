"""Draw the pictures of docs/gallery.md: one image under every family, sampler and padding.

python docs/gallery.py
"""

from pathlib import Path

import keras
import matplotlib
import numpy as np
from keras import ops

import stn
from stn.samplers import PADDINGS, SAMPLERS
from stn.transforms import FAMILIES

matplotlib.use("agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent / "images"
SIZE = 120


def ink(size):
    """A white letter on black, `(size, size, 1)`."""
    figure = plt.figure(figsize=(1, 1), dpi=size, facecolor="black")
    figure.text(0.5, 0.47, "R", fontsize=52, weight="bold", ha="center", va="center", color="white")
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :1] / np.float32(255)
    plt.close(figure)
    return drawn


def picture(size=SIZE):
    """The letter on a colored ground with a grid, so that every change can be seen."""
    letter = ink(size)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    ground = np.stack([0.15 + 0.5 * x, 0.3 + 0 * x, 0.65 - 0.4 * y], axis=-1)
    lines = np.arange(size) % (size // 8) == 0
    ground = np.where((lines | lines[:, None])[..., None], 0.75 * ground + 0.25, ground)
    return (ground * (1 - letter) + letter).astype("float32")


def warp(image, params, transform, **options):
    params = np.asarray(params, "float32")[None]
    result = stn.warp(image[None], params, transform, data_format="channels_last", **options)
    return np.clip(ops.convert_to_numpy(result)[0], 0, 1)


def example(family):
    """Parameters that show what a family can do."""
    rng = np.random.default_rng(3)
    given = {
        "translation": [0.3, -0.2],
        "rotation": [0.5],
        "rigid": [0.5, 0.2, -0.1],
        "attention": [0.6, 0.1, -0.2],
        "scaling": [0.6, 1.2, 0.1, 0],
        "similarity": [0.7, 0.5, 0.1, 0],
        "affine": [0.8, 0.4, 0.1, -0.2, 0.9, 0],
        "projective": [1, 0.2, 0, 0, 1.1, 0, 0.1, 0.45],
    }
    if family.dimensions == 3:
        given = {
            "translation": [0.3, -0.2, 0.2],
            "attention": [0.6, 0.1, -0.2, 0],
            "rigid": [0.5, 0.3, 0.6, 0, 0, 0],
            "affine": [0.8, 0.4, 0, 0, -0.2, 0.9, 0, 0, 0, 0.5, 0.9, 0],
        }
    spread = 0.12 if family.dimensions == 3 else {"tps": 0.1, "flow": 0.06}.get(family.name, 0.12)
    return given.get(family.name, spread * rng.normal(size=family.size))


def show(axis, image, title):
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.axis("off")


def save(figure, name):
    figure.savefig(FOLDER / f"{name}.png", dpi=110, pil_kwargs={"optimize": True})
    plt.close(figure)


def draw_families():
    image = picture()
    names = list(stn.TRANSFORMS)
    figure, axes = plt.subplots(2, 6, figsize=(11, 4.1), layout="compressed")
    show(axes.flat[0], image, "the image")
    for axis, name in zip(axes.flat[1:], names, strict=True):
        family = stn.TRANSFORMS[name]
        show(axis, warp(image, example(family), family), f"{name} ({family.size})")
    save(figure, "gallery-families")


def draw_volumes():
    """The middle slices of a block with a letter through it."""
    n = 48
    letter = ink(n)[..., 0] > 0.5
    volume = np.zeros((n, n, n, 1), "float32")
    volume[10:38] = 0.35
    volume[14:34] = np.where(letter, 1.0, 0.35)[..., None]
    families = [family for (_, d), family in FAMILIES.items() if d == 3]
    figure, axes = plt.subplots(3, len(families) + 1, figsize=(11, 5), layout="compressed")
    shown = {"the volume": volume}
    shown |= {f"{f.name} ({f.size})": warp(volume, example(f), f) for f in families}
    for column, (title, block) in zip(axes.T, shown.items(), strict=True):
        slices = block[n // 2, :, :, 0], block[:, n // 2, :, 0], block[:, :, n // 2, 0]
        for axis, part, side in zip(column, slices, ("front", "top", "side"), strict=True):
            show(axis, part, f"{title}\n{side}" if side == "front" else side)
    save(figure, "gallery-volumes")


def draw_samplers():
    """A small letter turned and enlarged, and rings shrunk, by every sampler."""
    letter = picture(32)
    n = 512
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    rings = (0.5 + 0.5 * np.cos(np.pi * n / 4 * (x**2 + y**2)))[..., None].astype("float32")
    figure, axes = plt.subplots(2, len(SAMPLERS), figsize=(11, 4.1), layout="compressed")
    for column, sampler in zip(axes.T, SAMPLERS, strict=True):
        params = [0.5, 0.3, 0.05, 0]
        turned = warp(letter, params, "similarity", output_size=192, sampler=sampler)
        show(column[0], turned, f"{sampler}, enlarged 12x")
        small = warp(rings, [0, 0], "translation", output_size=128, sampler=sampler)
        show(column[1], small, f"{sampler}, shrunk 4x")
    save(figure, "gallery-samplers")


def draw_paddings():
    image = picture()
    figure, axes = plt.subplots(1, len(PADDINGS), figsize=(11, 2.2), layout="compressed")
    for axis, padding in zip(axes, PADDINGS, strict=True):
        fill = [0.9, 0.7, 0.2] if padding in ("constant", "inward") else 0.0
        params = [1.9, 0.3, 0.3, 0.2]
        shown = warp(image, params, "similarity", padding=padding, fill_value=fill)
        show(axis, shown, padding)
    save(figure, "gallery-paddings")


def draw_registration():
    """Gradient descent on a translation, from 12 pixels away, with two samplers."""
    n, away = 28, 12 / 14
    letter = ink(n)
    angle = 0.6
    goal = np.array([[away * np.cos(angle), away * np.sin(angle)]], "float32")
    target = warp(letter, goal[0], "translation")
    figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="compressed")
    show(axes[0], letter[..., 0], "moving image")
    show(axes[1], target[..., 0], "target, 12 px away")
    for axis, sampler in zip(axes[2:], ("bilinear", "linearized"), strict=True):
        path = register(letter, target, sampler)
        show(axis, warp(letter, path[-1], "translation", sampler=sampler)[..., 0], "")
        axis.plot(*(-path.T * n / 2 + (n - 1) / 2), ".-", color="orange", markersize=3)
        axis.plot(*(-goal[0] * n / 2 + (n - 1) / 2), "+", color="lime", markersize=12)
        left = np.linalg.norm(path[-1] - goal[0]) * n / 2
        axis.set_title(f"{sampler}: {left:.2f} px left", fontsize=9)
    save(figure, "gallery-registration")


def register(image, target, sampler, steps=150):
    """Fit a translation; returns its path."""

    class Shift(keras.layers.Layer):
        def build(self, shape):
            self.params = self.add_weight(shape=(1, 2), initializer="zeros")

        def call(self, images):
            return stn.warp(
                images, self.params, "translation", sampler=sampler, data_format="channels_last"
            )

    model = keras.Sequential([keras.Input(image.shape), Shift()])
    model.compile(keras.optimizers.Adam(0.03), "mse")
    path = [ops.convert_to_numpy(model.layers[0].params)[0].copy()]
    for _ in range(steps):
        model.train_on_batch(image[None], target[None])
        path.append(ops.convert_to_numpy(model.layers[0].params)[0].copy())
    return np.array(path)


if __name__ == "__main__":
    draw_families()
    draw_volumes()
    draw_samplers()
    draw_paddings()
    draw_registration()
