"""Reads labelled pictures: a folder with a folder per class, or an .npz with `images` and `labels`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.learning.labelled import read_arrays
from engine.types import Float32, Int64

LARGEST = 128  # pixels a side; the encoders are small
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Pictures:
    """Grey pictures with optional labels."""

    grey: Float32  # (n, s, s), 0 to 1
    labels: NDArray[Any] | None  # (n,); None: not labelled
    label_names: NDArray[Any] | None
    keys: tuple[str, ...]

    @property
    def classes(self) -> Int64:
        """The class of each picture (n,), from 0 on. Raises InputError where there are fewer than two."""
        if self.labels is None:
            raise InputError("the pictures have no labels: training needs them.")
        found, classes = np.unique(self.labels, return_inverse=True)
        if len(found) < 2:
            raise InputError("all pictures are of one class: training needs two or more.")
        if len(found) == len(classes):
            raise InputError("every class has one picture only: training needs two of some.")
        return classes.reshape(-1).astype(np.int64)


def read_pictures(path: Path, size: int | None = None) -> Pictures:
    """Read pictures, scaled to `size` pixels a side; None: an .npz keeps its size, others get 28.

    Raises InputError where the path holds no pictures, or they cannot be used.
    """
    if path.is_dir():
        return _read_folder(path, size or 28)
    arrays = read_arrays(path, "images", "labels", "label_names", "keys")
    if "images" not in arrays:
        raise InputError(f"{path} has no array images: pictures are (n, height, width), of grey levels.")
    images, labels = arrays["images"], arrays.get("labels")
    if images.ndim == 4 and images.shape[3] in (1, 3, 4):
        images = images[..., :3].mean(axis=3)
    if images.ndim != 3 or images.dtype.kind not in "fiu" or not images.size:
        raise InputError(
            f"{path}: images must be numbers of the shape (n, height, width) or (n, height, width, 3), "
            f"not {images.dtype} {images.shape}."
        )
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iuUS"):
        raise InputError(f"{path}: labels must be {len(images)} integers or strings, one a picture.")
    grey = images.astype(np.float32)
    if not np.isfinite(grey).all() or grey.min() < 0.0:
        raise InputError(f"{path}: images must be grey levels from 0 on; there is a NaN or less than 0.")
    grey /= 255.0 if arrays["images"].dtype.kind in "iu" or grey.max() > 1.0 else 1.0
    keys = arrays.get("keys", np.arange(len(grey)))
    if keys.shape != (len(grey),):
        raise InputError(f"{path}: keys must be {len(grey)}, one a picture.")
    return Pictures(_scaled(grey, size), labels, arrays.get("label_names"), tuple(map(str, keys)))


def _read_folder(path: Path, size: int) -> Pictures:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError("a folder of pictures needs Pillow: pip install 'shoal[plots]'.") from None
    classes = sorted(each for each in path.iterdir() if each.is_dir())
    files = [
        (number, file)
        for number, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in ENDINGS
    ]
    if not files:
        raise InputError(f"{path} has no pictures: it should have a folder of pictures for each class.")
    _check_size(size)
    grey = np.empty((len(files), size, size), np.float32)
    for row, (_, file) in enumerate(files):
        try:
            with Image.open(file) as picture:
                grey[row] = np.asarray(picture.convert("L").resize((size, size)), np.float32) / 255.0
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            raise InputError(f"{file} is no picture, or it is damaged.") from None
    labels = np.array([number for number, _ in files], np.int64)
    keys = tuple(file.relative_to(path).as_posix() for _, file in files)
    return Pictures(grey, labels, np.array([folder.name for folder in classes]), keys)


def _scaled(grey: Float32, size: int | None) -> Float32:
    """Scale pictures (n, h, w) to squares by linear interpolation."""
    height, width = grey.shape[1:]
    size = size or min(max(height, width), LARGEST)
    _check_size(size)
    if (height, width) == (size, size):
        return grey
    import torch

    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(grey)[:, None], (size, size), mode="bilinear", antialias=True
    )
    out: Float32 = scaled[:, 0].numpy()
    return out


def _check_size(size: int) -> None:
    if not 8 <= size <= LARGEST:
        raise InputError(f"pictures are scaled to 8 to {LARGEST} pixels a side, not {size}.")
