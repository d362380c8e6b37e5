"""Detectors: uint8 images in, features of a pretrained network out, with a record of how.

A Frechet distance is a number about images only together with the network, its weights, and the
resize and the normalisation in front of it. A `Detector` is all of these; its record says them.

  detector = detectors.load("inception", "inception.npz", variant="tf_legacy")
  outputs = detector.apply(images)  # uint8 [n, h, w, c]
  moments = frechet.moments(outputs.features)

Weights come from a file of yours; docs/guides/detectors.md has the commands that get
and convert each of the public ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from cmjax.metrics.detectors import dinov2, efficientnet, inception, weights
from cmjax.metrics.detectors.network import BATCH_SIZE, Pretrained, runner

# In full, as configs and cards spell it.
DETECTORS: dict[str, Pretrained] = {
  "inception": inception.PRETRAINED,
  "dinov2": dinov2.PRETRAINED,
  "efficientnet_lite0": efficientnet.PRETRAINED,
}


class Outputs(NamedTuple):
  """What a detector sees in n images, float32.

  Attributes:
    features: [n, d], what the Frechet and the kernel distance are computed from.
    spatial: [n, d_s], what sFID is computed from; None where a detector has no such.
    logits: [n, k] over classes, what the Inception score is computed from; None where it has none.
  """

  features: np.ndarray
  spatial: np.ndarray | None
  logits: np.ndarray | None


class Detector(NamedTuple):
  """A network with its weights and what stands in front of it.

  Attributes:
    name: a key of `DETECTORS`.
    score: what the Frechet distance in its features is called.
    dim: of the features.
    apply: uint8 images [n, h, w, c] with n >= 1 and c = 1 (grey) or 3 -> Outputs. An image's
      outputs do not depend on the others, nor on how many there are.
    record: what a score must be told with, for JSON: name, variant, weights_sha256, resize,
      normalisation, precision.
    rows: images that this process's devices look at together; fewer are filled up to as many.
  """

  name: str
  score: str
  dim: int
  apply: Callable[[np.ndarray], Outputs]
  record: dict[str, Any]
  rows: int = 1


def load(
  name: str,
  path: str | Path,
  *,
  variant: str | None = None,
  mesh: Mesh | None = None,
  batch_size: int = BATCH_SIZE,
) -> Detector:
  """A detector with the weights in a file.

  Args:
    name: a key of `DETECTORS`.
    path: of the .npz of its weights, as `python -m cmjax.metrics.detectors FILE --to` writes it.
    variant: of resize and normalisation, a key of its `inputs`; by default their first.
    mesh: the images are split over the devices of it that this process has; without one, one
      device.
    batch_size: images at a time on each device.

  Raises:
    ValueError: for an unknown name or variant; a file that is missing, is no .npz, or has not the
      tensors of this network, with the first of those that are missing or differ; a batch_size
      below 1.
  """
  if name not in DETECTORS:
    raise ValueError(f"Unknown detector {name!r}. Choose from: {', '.join(DETECTORS)}.")
  pretrained = DETECTORS[name]
  variant = next(iter(pretrained.inputs)) if variant is None else variant
  if variant not in pretrained.inputs:
    raise ValueError(
      f"Unknown variant {variant!r} of {name}. Choose from: {', '.join(pretrained.inputs)}."
    )
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size} must be at least 1; {BATCH_SIZE} is usual.")
  state = weights.read(path, pretrained)
  run = runner(pretrained, variant, state, mesh=mesh, batch_size=batch_size)
  record = {
    "name": name,
    "variant": variant,
    "weights_sha256": weights.digest(state),
    **pretrained.inputs[variant].record(),
    "precision": "float32, products and convolutions at the highest",
  }
  apply = lambda images: Outputs(*run(images))
  rows = batch_size * (1 if mesh is None else mesh.local_mesh.size)
  return Detector(name, pretrained.score, pretrained.dim, apply, record, rows)
