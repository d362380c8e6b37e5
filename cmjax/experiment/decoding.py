"""Images of samples that are latents, by the autoencoder of `config.data.records.vae`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cmjax import latents
from cmjax.base import paths
from cmjax.base.batching import in_batches
from cmjax.convert import autoencoder, files
from cmjax.experiment.fields import Samples
from cmjax.experiment.sections import pick

BATCH_SIZE = 8  # on a device; at 512x512 one activation has up to 0.27 GB a sample (256 channels)


class Decoder(NamedTuple):
  """What makes images of latents.

  Attributes:
    decode: latents [n, h, w, z] -> float32 images, in [-1, 1] but for what is overshot.
    shape: of one image.
    record: of the autoencoder and the convention, for JSON.
  """

  decode: Callable[[np.ndarray], np.ndarray]
  shape: tuple[int, ...]
  record: dict[str, Any]


def decoder(samples: Samples, mesh: Mesh | None = None) -> Decoder | None:
  """What makes images of samples; None where they are no latents, or no file is named.

  It computes in float32, with products and convolutions at the highest precision.

  Args:
    samples: with their convention, and the file of the autoencoder.
    mesh: latents are split over the devices of it that this process has; None: one device.

  Raises:
    ValueError: no file is there, or it is no autoencoder of such latents; an autoencoder is named,
      but the samples are no latents.
  """
  convention, vae = samples.latents, samples.vae
  if convention is None and vae is not None:
    raise ValueError(f"data.records.vae={vae!r}, but data.records.latents is None: drop one.")
  if convention is None or vae is None:
    return None
  pick(latents.CONVENTIONS, convention, "convention (data.records.latents)")
  path = _existing(vae)
  return _decoder(path, path.stat().st_mtime_ns, convention, samples.shape, mesh)


@functools.lru_cache(maxsize=1)  # all evaluators of a run share it: its memory, its compilation
def _decoder(
  path: Path, changed: int, convention: str, shape: tuple[int, ...], mesh: Mesh | None
) -> Decoder:
  chosen = latents.CONVENTIONS[convention]
  network, params = autoencoder.load(path)

  @jax.jit
  def compute(params, z):
    with jax.default_matmul_precision("highest"):
      return (latents.decode(lambda x: network.decode(params, x), z, chosen),)

  of_one = jax.ShapeDtypeStruct((1, *shape), np.float32)
  (made,) = jax.eval_shape(compute, params, of_one)
  run = in_batches(compute, params, mesh, BATCH_SIZE)

  def decode(z: np.ndarray) -> np.ndarray:
    (images,) = run(z.astype(np.float32))
    assert images is not None, "computed just now"
    return images

  record = {"convention": convention, "vae_sha256": _digest(path, changed)}
  return Decoder(decode, made.shape[1:], record)


def check(recorded: dict[str, Any] | None, vae: str | None, path: str) -> None:
  """Raises ValueError if the file `vae` is not the autoencoder that made the latents in `path`."""
  expected = (recorded or {}).get("vae_sha256")
  if vae is None or expected is None:
    return
  file = _existing(vae)
  if (found := _digest(file, file.stat().st_mtime_ns)) != expected:
    raise ValueError(
      f"data.records.vae={vae!r} has the sha256 {found[:12]}..., but the latents in {path} were "
      f"made by an autoencoder of {expected[:12]}...: images of another would be wrong. Name that "
      "file."
    )


@functools.lru_cache(maxsize=1)  # every split that is opened asks for it
def _digest(path: Path, changed: int) -> str:
  return files.digest(path)


def _existing(vae: str) -> Path:
  path = paths.local(vae)
  if not path.is_file():
    raise ValueError(
      f"data.records.vae={vae!r}: there is no such file. Give the SD-VAE's "
      "diffusion_pytorch_model.safetensors, or None: then there are latents, and no images of them."
    )
  return path
