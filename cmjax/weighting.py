"""Weightings over time, as log weights w(t): a sample's loss is e^w(t) || . ||^2 - w(t).

All are for residuals of F, that is of unit scale: the weight that EDM calls lambda(sigma) times
c_out^2, which is 1 for EDM itself.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from cmjax import embeddings
from cmjax.base.ranges import Range, Size
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


def learned(
  *, bias: Annotated[float, Range(-1_000, 1_000)] = 0.0, channels: Size = 128
) -> Weighting:
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


def edm2(*, sigma_data: float, channels: Size = 128) -> Weighting:
  """w(t) = -u(t), where u is the logvar of Karras et al. 2024: a head with weights of unit norm.

  u is one weight for each of `channels` random features sqrt(2) cos(f c + p) of c = ln(sigma) / 4,
  so it can reach about sqrt(2 channels) and starts at random; `learned` has no bound, starts where
  it should, and is smooth up to t = pi/2. For networks that are trained as EDM2 trains its own.
  """

  def init(key):
    key_f, key_p, key_w = jax.random.split(key, 3)
    freqs = 2 * math.pi * jax.random.normal(key_f, (channels,), jnp.float32)
    phases = 2 * math.pi * jax.random.uniform(key_p, (channels,), jnp.float32)
    kernel = jax.random.normal(key_w, (channels, 1), jnp.float32)
    return {
      "logvar_fourier": {"freqs": freqs, "phases": phases},
      "logvar_linear": {"kernel": kernel},
    }

  def apply(params, t):
    # Neither frequencies nor phases are trained.
    f, p = (jax.lax.stop_gradient(params["logvar_fourier"][k]) for k in ("freqs", "phases"))
    c_noise = jnp.log(sigma_data * jnp.tan(t)) / 4
    features = math.sqrt(2) * jnp.cos(c_noise[:, None] * f[None] + p[None])
    kernel = params["logvar_linear"]["kernel"][:, 0]
    # As every weight of EDM2 is normalised; see `networks.magnitude.normalize`.
    kernel = kernel / (1e-4 + jnp.sqrt(jnp.mean(kernel**2))) / math.sqrt(channels)
    return -jnp.sum(features * kernel[None], -1)

  return Weighting(init, apply)
