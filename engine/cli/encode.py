"""`encode train`, `encode apply`: pictures to embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cli.console import complain, need_ending, need_outputs
from engine.cli.spaces import progress_bar
from engine.errors import InputError, counted
from engine.system.files import written

if TYPE_CHECKING:
    from engine.learning.training import Plan

NPZ = (
    "emb",
    "keys",
    "time",
    "text",
    "payload",
    "labels",
    "label_names",
    "images",
)  # what `shoal ingest` reads


def train(source: Path, out: Path, kind: str, dim: int, plan: Plan) -> None:
    """Train an encoder on labelled pictures and write it."""
    from engine.learning.encoder import train_encoder
    from engine.learning.pictures import read_pictures

    need_outputs([out], [source])
    need_ending(out, ".safetensors")
    pictures = read_pictures(source)
    size = pictures.grey.shape[1]
    classes = counted(int(pictures.classes.max()) + 1, "class", "classes")
    complain(f"{counted(len(pictures.grey), 'picture')} of {size} x {size}, {classes}")
    with progress_bar("steps") as advance:
        encoder, margins = train_encoder(pictures, kind, dim, plan, lambda share, loss: advance(share))
    encoder.save(out)
    shown = f", margins {margins.positive:.2f} and {margins.negative:.2f}" if margins else ""
    print(f"{out}: {kind}, {dim} components, {plan.loss}{shown}")


def apply(encoder_file: Path, source: Path, out: Path) -> None:
    """Embed pictures; write an .npz that `shoal ingest` takes."""
    from engine.learning.encoder import Encoder
    from engine.learning.pictures import read_pictures

    need_outputs([out], [encoder_file, source])
    need_ending(out, ".npz")
    encoder = Encoder.load(encoder_file)
    pictures = read_pictures(source, encoder.size)
    with progress_bar("pictures") as advance:
        emb = encoder.apply(pictures.grey, advance)
    arrays: dict[str, Any] = {"emb": emb, "images": np.round(255 * pictures.grey).astype(np.uint8)}
    arrays["keys"] = np.array(pictures.keys)
    if pictures.labels is not None:
        arrays["labels"] = pictures.labels
    if pictures.label_names is not None:
        arrays["label_names"] = pictures.label_names
    _write(out, arrays)


def adapt(adapter_file: Path, source: Path, out: Path) -> None:
    """Map the embeddings of an .npz with an adapter; everything else in it stays."""
    from engine.learning.adapt import Adapter, map_embeddings
    from engine.learning.labelled import read_arrays

    need_outputs([out], [adapter_file, source])
    need_ending(out, ".npz")
    adapter = Adapter.load(adapter_file)
    arrays = read_arrays(source, *NPZ)
    if "emb" not in arrays:
        raise InputError(f"{source} has no array emb: an adapter maps embeddings (n, d).")
    try:
        arrays["emb"] = map_embeddings(adapter, arrays["emb"])
    except InputError as problem:
        raise InputError(f"{source}: {problem}") from None
    _write(out, arrays)


def _write(out: Path, arrays: dict[str, Any]) -> None:
    with written(out) as file:
        np.savez_compressed(file, **arrays)
    count, dim = arrays["emb"].shape
    print(f"{out}: {count:,} embeddings of {dim} components")
