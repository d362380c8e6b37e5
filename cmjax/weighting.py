"""Weightings over time, as log weights w(t): a sample's loss is e^w(t) || . ||^2 - w(t).

All are for residuals of F, that is of unit scale: the weight that EDM calls lambda(sigma) times
c_out^2, which is 1 for EDM itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cmjax import embeddings
from cmjax.types import Array, Params


class Weighting(NamedTuple):
  """w(t) as two pure functions; without parameters `init` gives an empty dict."""

  init: Callable[[Array], Params]  # key -> params
  apply: Callable[[Params, Array], Array]  # params, t [b] -> w [b]


def constant() -> Weighting:
  """w(t) = 0: the plain mean square of F (TrigFlow's eq. 4, and EDM's weighting)."""
  return Weighting(lambda key: {}, lambda params, t: jnp.zeros_like(t))


def inverse_sigma(*, sigma_data: float) -> Weighting:
  """w(t) = -log(sigma_data tan(t)), which some ports of sCM apply on top of Algorithm 1.

  The prior 1 / (sigma_data tan t) is already inside g = cos(t) df/dt, so this applies it twice. It
  is here to reproduce those ports (FastGen, SANA-Sprint), not as advice.
  """
  return Weighting(lambda key: {}, lambda params, t: -jnp.log(sigma_data * jnp.tan(t)))


def learned(*, bias: float = 0.0, channels: int = 128) -> Weighting:
  """w_phi(t): a linear head on a positional embedding of t (sCM, section 4.2 and appendix D).

  The minimiser satisfies e^w(t) E|| . ||^2 = 1. cmjax default (the paper says only "as EDM2"): a
  plain linear map of 128 channels, its weight at 0 and its bias at the log weight to start from:
  log D where the tangent has unit L2 norm, 0 for a diffusion loss.
  """

  def init(key):
    del key  # starts at a constant: nothing is drawn
    return {"kernel": jnp.zeros((channels,)), "bias": jnp.array(bias, jnp.float32)}

  def apply(params, t):
    # A dot of float32 vectors that stays float32 also where matmuls default to less.
    products = embeddings.positional(t, channels) * params["kernel"][None]
    return jnp.sum(products, -1) + params["bias"]

  return Weighting(init, apply)
