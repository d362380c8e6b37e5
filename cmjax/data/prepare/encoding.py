"""Images to the latents of the SD-VAE, as they are prepared: mean and std, normalised, float32."""

from pathlib import Path

import jax
import numpy as np

from cmjax import latents
from cmjax.base import sharding
from cmjax.base.batching import in_batches
from cmjax.convert import autoencoder, files
from cmjax.data.prepare.writing import Encoder

STORED = "mean and std of (z - mean) 0.5 / std, float32"


def encoder(path: str | Path, convention: str = "scm", *, batch_size: int = 8) -> Encoder:
  """What makes latents of images, on all devices of this machine.

  Both the mean and the std of the encoder are kept, as float32 and after (z - m) 0.5 / s (the std
  times 0.5 / s), so that `latents.draw` gives a new latent each time. float16 would halve the disk
  space, but moves means of 8 and more by as much as the last bit of a pixel.

  Args:
    path: of the autoencoder's safetensors file, diffusers' names.
    convention: a key of `latents.CONVENTIONS`.
    batch_size: images at a time; a multiple of the number of devices.

  Raises:
    ValueError: for a file that is no such autoencoder, or another number of channels than the
      convention has.
  """
  if convention not in latents.CONVENTIONS:
    choices = ", ".join(latents.CONVENTIONS)
    raise ValueError(f"Unknown convention {convention!r}. Choose from: {choices}.")
  chosen, mesh = latents.CONVENTIONS[convention], sharding.make_mesh()
  sharding.check_batch_size(batch_size, mesh)
  vae, params = autoencoder.load(path)

  @jax.jit
  def compute(params, images):
    with jax.default_matmul_precision("highest"):  # accelerators would round to 8 bits, or 10
      pixels = images.astype(np.float32) / 127.5 - 1.0
      return latents.moments(lambda x: vae.encode(params, x), pixels, chosen)

  run = in_batches(compute, params, mesh, batch_size // mesh.size)

  def encode(images: np.ndarray) -> dict[str, np.ndarray]:
    mean, std = run(images)
    assert mean is not None and std is not None, "computed just now"
    return {"image": mean, "image_std": std}

  def shape(of):
    images = jax.ShapeDtypeStruct((batch_size, *of), np.uint8)
    return jax.eval_shape(compute, params, images)[0].shape[1:]

  record = latents.record(chosen) | {
    "vae_sha256": files.digest(path),
    "stored": STORED,
    "batch_size": batch_size,
  }
  return Encoder(encode, shape, record, batch_size)


def of_moments() -> Encoder:
  """What makes latents of EDM2's own: mean and std of its autoencoder, float32 [n, h, w, 8].

  Its dataset tool gives the autoencoder images in [0, 1], so that they are of the convention edm2.
  """
  chosen = latents.EDM2

  @jax.jit
  def compute(raw):
    count = raw.shape[-1] // 2
    return latents.moments(lambda _: (raw[..., :count], raw[..., count:]), raw, chosen)

  def encode(raw: np.ndarray) -> dict[str, np.ndarray]:
    mean, std = map(np.asarray, compute(raw))
    return {"image": mean, "image_std": std}

  def shape(of):
    if of[-1] != 2 * len(chosen.mean):
      raise ValueError(
        f"The files have {of[-1]} channels, but EDM2's latents have {2 * len(chosen.mean)}: mean "
        "and std of 4. Other floats can be trained on as an .npz (data.npz)."
      )
    return (*of[:-1], len(chosen.mean))

  record = latents.record(chosen) | {"stored": STORED, "batch_size": 64}
  return Encoder(encode, shape, record, 64)
