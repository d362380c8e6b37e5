"""From uint8 images to the outputs of a pretrained network: resized, normalised, a batch at a time.

The one border of precision: products and convolutions are computed at the highest, in float32
throughout, on every device. (By default GPUs would round them to TF32 and TPUs to bfloat16, and a
Frechet distance with them.)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cmjax.base import param_names
from cmjax.base.batching import in_batches
from cmjax.metrics.detectors import resize
from cmjax.types import Array

BATCH_SIZE = 32  # images at a time on a device
# features, spatial, logits, as in `detectors.Outputs`.
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


class Input(NamedTuple):
  """What stands between uint8 images and a network.

  Attributes:
    size: the side that images are resized to, whatever their shape.
    resize: a key of `resize.KERNELS`, or "pil_bicubic_uint8".
    mean: of pixels in [0, 255], subtracted; for all channels, or one each.
    std: of the same, by which is divided afterwards.
    clip: whether what the resize has put outside [0, 255] is cut off.
  """

  size: int
  resize: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  clip: bool = False

  def record(self) -> dict[str, Any]:
    """What a score must be told with."""
    said = f"{self.resize} to {self.size}" + (", cut to [0, 255]" if self.clip else "")
    mean, std = (", ".join(f"{x:.6g}" for x in values) for values in (self.mean, self.std))
    return {"resize": said, "normalisation": f"(pixel - [{mean}]) / [{std}]"}


class Pretrained(NamedTuple):
  """A network that is used as it was trained by others.

  Attributes:
    score: what the Frechet distance in its features is called.
    dim: of the features.
    module: makes the NNX module, of parameters alone, whose paths are the names in files; called
      with normalised images [n, size, size, 3] it gives (features, spatial or None, logits or
      None).
    inputs: by variant.
    others: a pattern of names in files that the network does not use.
    origin: which files hold its weights, for errors.
  """

  score: str
  dim: int
  module: Callable[[], nnx.Module]
  inputs: Mapping[str, Input]
  others: str
  origin: str


def prepare(images: Array, input: Input) -> Array:
  """uint8 images [n, h, w, 1 or 3] -> normalised float32 [n, size, size, 3]."""
  x = images.astype(jnp.float32)
  if input.resize in resize.KERNELS:
    x = resize.apply(x, input.resize, input.size)
  if input.clip:
    x = jnp.clip(x, 0, 255)
  x = jnp.broadcast_to(x, (*x.shape[:3], 3))
  mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in input[2:4])
  return (x - mean) / std


@functools.cache
def shapes(module: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
  """The shape of every tensor of a network by its name in files, such as `blocks.0.norm1.bias`."""
  params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(module), nnx.Param)[1])
  return {name.replace("/", "."): leaf.shape for name, leaf in param_names.by_name(params).items()}


@functools.cache
def forward(module: Callable[[], nnx.Module]) -> Callable[[dict[str, Array], Array], Any]:
  """(tensors by name, normalised images) -> outputs, compiled once for all variants."""
  graphdef, params = nnx.split(nnx.eval_shape(module), nnx.Param)
  structure = nnx.to_pure_dict(params)

  def apply(tensors, x):
    leaf = lambda path, _: tensors[param_names.name(path, ".")]
    state = jax.tree_util.tree_map_with_path(leaf, structure)
    with jax.default_matmul_precision("highest"):
      return nnx.merge(graphdef, state)(x)

  return jax.jit(apply)


def runner(
  pretrained: Pretrained,
  variant: str,
  tensors: Mapping[str, np.ndarray],
  *,
  mesh: Mesh | None,
  batch_size: int,
) -> Callable[[np.ndarray], Arrays]:
  """images -> outputs; the arguments are those of `detectors.load`."""
  input = pretrained.inputs[variant]
  network, fit = forward(pretrained.module), jax.jit(functools.partial(prepare, input=input))
  apply = in_batches(
    lambda params, images: network(params, fit(images)), dict(tensors), mesh, batch_size
  )

  def run(images):
    check_images(images)
    if input.resize == "pil_bicubic_uint8":
      images = resize.pil_bicubic_uint8(images, input.size)
    features, spatial, logits = apply(images)
    assert features is not None, "every network has features"
    return features, spatial, logits

  return run


def check_images(images: Any) -> None:
  """Raises ValueError for what is not uint8 [n, h, w, 1 or 3] with n >= 1."""
  if (
    not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4
    or images.shape[-1] not in (1, 3) or not images.size
  ):  # fmt: skip
    got = f"{getattr(images, 'dtype', type(images).__name__)} {list(np.shape(images))}"
    raise ValueError(
      f"A detector takes uint8 images [n, h, w, c] with c 1 or 3 and n at least 1, got {got}. "
      "Round floats in [-1, 1] first, by the rule that the score's card is to say."
    )
