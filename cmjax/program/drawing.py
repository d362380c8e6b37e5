"""What weights draw: an .npz and a grid of each sampler, or a folder of pictures by number."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.base import lock, paths, sharding
from cmjax.base.atomic_files import replacing
from cmjax.experiment import Experiment
from cmjax.metrics import evaluators, rounding
from cmjax.metrics.progress import Progress
from cmjax.program import numbered
from cmjax.program.numbered import Clipped
from cmjax.run import labelled_grid, writer
from cmjax.types import Model, Params

logger = logging.getLogger("cmjax")

NUM_SAMPLES = 64  # where nobody says how many
# The arrays of an .npz of images, as ADM's evaluator reads them: uint8 [n, h, w, c], the classes.
ARRAY, LABELS = "arr_0", "arr_1"


class Drawn(NamedTuple):
  """How many samples, which, and where they go.

  Attributes:
    num_samples: of each sampler, in an .npz; None: 64, or as many more as fill rows of classes.
    seeds: the numbers of the samples, a picture each; None: an .npz and a grid.
    name: one of config.samplers; None: each of them.
    seed: of the noise.
    out: the folder of what is written; None: the one of the weights.
    batch_size: how many a device draws at once.
  """

  num_samples: int | None = None
  seeds: np.ndarray | None = None
  name: str | None = None
  seed: int = 0
  out: str | os.PathLike[str] | None = None
  batch_size: int = numbered.AT_ONCE


class Weights(NamedTuple):
  """What samples are drawn from.

  Attributes:
    exp: the experiment; its samplers are used.
    mesh: whose devices draw.
    params: of its network.
    guides: the weaker models of samplers under autoguidance, by the sampler's key.
    class_names: of its classes, in their order; (): they have numbers alone.
    made_of: by what the weights are known, as plain data.
    stem: of the names of files, between sampler and seed; "": none.
    folder: where files go, if nobody says another.
    locked: the folder whose lock keeps two commands from one file; None: where files go.
  """

  exp: Experiment
  mesh: Mesh
  params: Params
  guides: Mapping[str, Model]
  class_names: Sequence[str]
  made_of: Mapping[str, Any]
  stem: str
  folder: epath.Path
  locked: epath.Path | None = None


def check(drawn: Drawn) -> None:
  """Raises a ValueError for what cannot be drawn."""
  if drawn.num_samples is not None and drawn.num_samples < 1:
    raise ValueError(f"--num_samples={drawn.num_samples} must be at least 1.")
  if drawn.batch_size < 1:
    raise ValueError(f"--batch_size={drawn.batch_size} must be at least 1.")
  if drawn.num_samples is not None and drawn.seeds is not None:
    raise ValueError(
      f"--num_samples={drawn.num_samples} and --seeds are both given. --num_samples=64 makes an "
      ".npz and a grid of samples 0 to 63, --seeds=0-63 a picture of each: drop one."
    )
  experiment.check_seed(drawn.seed, "--seed")


def draw(weights: Weights, drawn: Drawn) -> list[epath.Path]:
  """Draws and writes; every process must call it. Returns what was written."""
  exp, written = weights.exp, []
  decoding = experiment.decoder(exp.samples, weights.mesh)
  if exp.samples.latents and not decoding:
    logger.info("Samples are latents: data.records.vae=FILE makes images of them.")
  keys = [drawn.name] if drawn.name else list(exp.samplers)
  folder = weights.folder if drawn.out is None else paths.place(drawn.out, "--out")
  folder = paths.absolute(folder)
  for key in keys:
    sampler = experiment.compiled_sampler(exp, key, weights.mesh, weights.guides.get(key))
    stem = "_".join(filter(None, (key, weights.stem, f"seed{drawn.seed}")))
    if drawn.seeds is not None:
      own = folder if drawn.out and len(keys) == 1 else folder / stem
      _draw_pictures(weights, drawn, key, sampler, decoding, own)
      written.append(own)
    else:
      arrays, pixels = _draw_arrays(weights, drawn, key, sampler, decoding)
      locked = weights.locked if drawn.out is None else None
      written += write(folder, stem, arrays, pixels, locked)
  return written


def _draw_pictures(
  weights: Weights,
  drawn: Drawn,
  key: str,
  sampler: evaluators.Sampler,
  decoding: Any,
  folder: epath.Path,
) -> None:
  exp = weights.exp
  shape = decoding.shape if decoding else exp.samples.shape
  if (exp.samples.latents and not decoding) or not _are_images(shape):
    what = "latents" if exp.samples.latents else f"of the shape {list(shape)}"
    raise ValueError(
      f"--seeds makes pictures of 1 or 3 channels, and these samples are {what}. --num_samples "
      "writes them as numbers."
    )
  assert drawn.seeds is not None, "asked by who has them"
  chosen = exp.samplers[key]
  made_of = {
    **weights.made_of,
    "sampler": {"key": key, "times": np.asarray(chosen.times).tolist(), **chosen.record},
    "noise": {"seed": drawn.seed, "num_classes": exp.samples.num_classes},
    "decoder": decoding.record if decoding else None,
  }
  said = numbered.write(
    functools.partial(sampler, weights.params, jax.random.key(drawn.seed)),
    decoding.decode if decoding else lambda samples: samples,
    folder,
    drawn.seeds,
    mesh=weights.mesh,
    made_of=experiment.as_json(made_of),
    what=f"samples.{key}",
    at_once=drawn.batch_size,
  )
  if sharding.process()[0] == 0:
    logger.info("%s", said)


def _are_images(shape: Sequence[int]) -> bool:
  return len(shape) == 3 and shape[-1] in (1, 3)


def _draw_arrays(
  weights: Weights, drawn: Drawn, key: str, sampler: evaluators.Sampler, decoding: Any
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
  """What an .npz of samples holds, and the pixels of a grid of them, if they have any."""
  samples = weights.exp.samples
  num = drawn.num_samples or _in_whole_rows(samples.num_classes)
  x0 = evaluators.whole(
    *(sampler, weights.params, jax.random.key(drawn.seed), num, sharding.everyone),
    batch_size=min(num, drawn.batch_size * weights.mesh.size),
    progress=Progress(f"samples.{key}", num),
  )
  images, arrays = decoding.decode(x0) if decoding else x0, {}
  if decoding or samples.latents or not _are_images(samples.shape):
    arrays["samples"] = x0
  if samples.latents and not decoding:
    return arrays, None
  labels = np.arange(num) % samples.num_classes if samples.num_classes else None
  if _are_images(images.shape[1:]):
    clipped = Clipped().add(images)
    if clipped.outside and sharding.process()[0] == 0:
      logger.info("samples.%s: %s.", key, clipped.words())
    arrays[ARRAY] = rounding.to_uint8(images, rounding.RULES[0])
    arrays |= {} if labels is None else {LABELS: labels}
    images = np.clip(images, -1, 1)
    if labels is not None:
      names = list(weights.class_names) or list(map(str, range(samples.num_classes)))
      few = slice(0, writer.MAX_IMAGES)
      return arrays, labelled_grid.labelled_grid(images[few], labels[few], names)
  return arrays, writer.picture(images)


def _in_whole_rows(num_classes: int) -> int:
  """64, or as many more as fill the last row of a grid with a column for each class."""
  columns = num_classes if 0 < num_classes <= labelled_grid.MOST_COLUMNS else 1
  return -(-NUM_SAMPLES // columns) * columns


def write(
  folder: epath.Path,
  stem: str,
  arrays: Mapping[str, np.ndarray],
  pixels: np.ndarray | None,
  locked: epath.Path | None = None,
) -> list[epath.Path]:
  """The files of some samples, which are of one call where another writes the same.

  Args:
    folder: of the files; made if it is not there.
    stem: of their names.
    arrays: of the .npz.
    pixels: of the picture; None: there is none.
    locked: the run whose lock is held, and which must be there; None: the folder's own.
  """
  written = [] if pixels is None else [folder / f"{stem}.png"]
  written.append(folder / f"{stem}.npz")
  if sharding.process()[0] == 0:
    if locked is None:
      folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(locked or folder, "sample", wait=True):
      folder.mkdir(exist_ok=True)
      if pixels is not None:
        writer.save_png(written[0], pixels)
      with replacing(written[-1]) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] (an array is no flag)
  return written
