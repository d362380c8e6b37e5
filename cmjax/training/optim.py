"""Optimizers as optax chains, and learning rates as functions of the update, counted from 0."""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from cmjax.base import param_names
from cmjax.base.ranges import Count, CountOrNone, NonNegative, Positive, Share
from cmjax.types import Params


def constant(lr: NonNegative, *, warmup_steps: CountOrNone = 0) -> optax.Schedule:
  """lr, after a linear ramp over `warmup_steps` (as EDM's: the first update has rate 0)."""
  return lambda step: lr * _ramp(step, warmup_steps)


def inverse_sqrt(
  lr: NonNegative, *, decay_steps: Count, warmup_steps: CountOrNone = 0
) -> optax.Schedule:
  """lr / sqrt(max(step / decay_steps, 1)) after a linear ramp (EDM2, section B; t_ref in sCM)."""
  if decay_steps <= 0:
    raise ValueError(f"optim.decay_steps={decay_steps} must be positive.")

  def schedule(step):
    return lr * _ramp(step, warmup_steps) / jnp.sqrt(jnp.maximum(step / decay_steps, 1.0))

  return schedule


def _ramp(step: jax.typing.ArrayLike, warmup_steps: int) -> jax.Array:
  return jnp.minimum(1.0, step / warmup_steps) if warmup_steps else jnp.ones(())


def adam(
  schedule: optax.Schedule,
  *,
  b1: Share = 0.9,
  b2: Share = 0.999,
  eps: Positive = 1e-8,
  clip_norm: Positive | None = None,
) -> optax.GradientTransformation:
  """Adam; `clip_norm` clips the global norm of the gradient first (None: off, as in the papers)."""
  return optax.chain(*_clip(clip_norm), optax.adam(schedule, b1, b2, eps))


def radam(
  schedule: optax.Schedule,
  *,
  b1: Share = 0.9,
  b2: Share = 0.999,
  eps: Positive = 1e-8,
  clip_norm: Positive | None = None,
) -> optax.GradientTransformation:
  """Rectified Adam, which CM, iCT and sCM (CIFAR-10) train with; `clip_norm` as in `adam`."""
  return optax.chain(*_clip(clip_norm), optax.radam(schedule, b1, b2, eps))


def _clip(clip_norm: float | None) -> list[optax.GradientTransformation]:
  return [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]


def project(
  onto: Callable[[jax.Array], jax.Array], paths: Sequence[str] | Callable[[str], bool]
) -> optax.GradientTransformation:
  """The last transformation of a chain: after its update these parameters lie where `onto` says.

  With a normalisation, this is the forced weight normalisation of Karras et al. 2024 (arXiv
  2312.02696, section 2.3): weights that a layer normalises anyway would grow without end, since
  their gradients are orthogonal to them, and the learning rate would decay by itself. NVIDIA's
  code does it in the forward pass; here a forward pass changes nothing, so averages, teachers and
  targets are safe from it.

  Args:
    onto: a parameter -> the parameter where it is to be; of the same shape.
    paths: regular expressions; a parameter is held if one is found in its path, such as
      "net/out_conv/kernel". Or a function: path -> whether it is held.
  """

  def update(updates, state, params=None):
    if params is None:
      raise ValueError("optim.project needs the params in update(updates, state, params).")
    return at_paths(lambda u, p: onto(p + u) - p, paths, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def at_paths(
  function: Callable[..., jax.Array],
  paths: Sequence[str] | Callable[[str], bool],
  tree: Params,
  *rest: Params,
) -> Params:
  """`tree` with function(leaf, *leaves of `rest`) at the paths of `project`; elsewhere as it is."""
  chosen = paths if callable(paths) else lambda name: any(re.search(p, name) for p in paths)

  def leaf(path, a, *others):
    return function(a, *others) if chosen(param_names.name(path)) else a

  return jax.tree_util.tree_map_with_path(leaf, tree, *rest)
