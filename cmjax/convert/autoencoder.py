"""The SD-VAE's weights: a file of diffusers' `AutoencoderKL` in, and out again."""

from pathlib import Path

import jax
import safetensors.numpy

from cmjax import networks
from cmjax.convert import files, names
from cmjax.convert.tensors import as_float32
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
  foreign = files.read(path)
  try:
    state = foreign.networks[files.choose(foreign.networks, None)].tensors
    state = {name: as_float32(name, array) for name, array in state.items()}
    return names.from_torch(state, shapes, FAMILY)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def write(path: str | Path, params: Params) -> None:
  """A safetensors file of these weights that diffusers' `AutoencoderKL` reads."""
  safetensors.numpy.save_file(names.to_torch(params, FAMILY), path, metadata={"format": "pt"})
