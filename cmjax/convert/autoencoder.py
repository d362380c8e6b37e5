"""The SD-VAE's weights: a file of diffusers' `AutoencoderKL` in, and out again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from cmjax import networks
from cmjax.base.atomic_files import replacing
from cmjax.convert import files, names
from cmjax.convert.tensors import as_float32
from cmjax.networks.autoencoder import Autoencoder
from cmjax.types import Params

FAMILY = "autoencoder_kl"


def read(path: str | Path, shapes: Params | None = None) -> Params:
  """The weights of an autoencoder, float32: `diffusion_pytorch_model.safetensors` of the SD-VAE.

  Args:
    path: of the file; its attention's layers may have their old names (`query`, `proj_attn`, ...).
    shapes: the parameters that the autoencoder has, as `jax.eval_shape(vae.init, key)` gives them;
      by default those of the SD-VAE.

  Raises:
    ValueError: in one line, with the path: for a file that is missing, broken or of another kind,
      or naming every tensor that does not fit, with what was got and what is expected.
  """
  if shapes is None:
    shapes = jax.eval_shape(networks.autoencoder_kl().init, jax.random.key(0))
  return _convert(path, _tensors(path), shapes)


def _convert(path: str | Path, tensors: Mapping[str, np.ndarray], shapes: Params) -> Params:
  try:
    state = {name: as_float32(name, array) for name, array in tensors.items()}
    return names.from_torch(state, shapes, FAMILY)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def load(path: str | Path) -> tuple[Autoencoder, Params]:
  """The autoencoder of a file, of any widths, and its weights; errors as those of `read`."""
  tensors = _tensors(path)
  try:
    options = architecture(tensors)
  except KeyError as error:
    raise ValueError(
      f"{path}: it has no {error.args[0]}, so it is no AutoencoderKL of diffusers. Give the "
      "SD-VAE's diffusion_pytorch_model.safetensors."
    ) from None
  vae = networks.autoencoder_kl(**options)
  return vae, _convert(path, tensors, jax.eval_shape(vae.init, jax.random.key(0)))


def architecture(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The arguments of `networks.autoencoder_kl` that tensors with diffusers' names are for."""
  levels = "encoder.down_blocks.{}.resnets.0.conv1.weight"
  blocks = "encoder.down_blocks.0.resnets.{}.conv1.weight"
  count = lambda name: next(i for i in range(len(tensors) + 1) if name.format(i) not in tensors)
  num_levels = count(levels)
  return {
    "widths": tuple(tensors[levels.format(i)].shape[0] for i in range(num_levels)),
    "num_blocks": count(blocks),
    "in_channels": tensors["encoder.conv_in.weight"].shape[1],
    "latent_channels": tensors["post_quant_conv.weight"].shape[0],
  }


def _tensors(path: str | Path) -> dict[str, np.ndarray]:
  foreign = files.read(path)
  try:
    return foreign.networks[files.choose(foreign.networks, None)].tensors
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def write(path: str | Path, params: Params) -> None:
  """A safetensors file of these weights that diffusers' `AutoencoderKL` reads."""
  with replacing(Path(path)) as file:
    safetensors.numpy.save_file(names.to_torch(params, FAMILY), file.name, {"format": "pt"})
