"""Closed forms for data N(0, s^2 I): what every formula is tested against.

The variance of x_t is V(t) = cos^2 s^2 + sin^2 sigma_data^2; everything is linear in x.
"""

import jax.numpy as jnp

from cmjax import trigflow

SIGMA_DATA = 0.5
S = 0.2  # std of the data, not sigma_data on purpose


def variance(t):
  return jnp.cos(t) ** 2 * S**2 + jnp.sin(t) ** 2 * SIGMA_DATA**2


def _times(factor, x, t):
  return x * factor.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def dxdt(x, t):
  """The PF-ODE: x sin cos (sigma_data^2 - s^2) / V."""
  return _times(jnp.sin(t) * jnp.cos(t) * (SIGMA_DATA**2 - S**2) / variance(t), x, t)


def consistency(x, t):
  """The true consistency function f = x s / sqrt(V)."""
  return _times(S / jnp.sqrt(variance(t)), x, t)


def flow(x, t, s):
  """The PF-ODE's solution from t to s: x sqrt(V(s) / V(t))."""
  return _times(jnp.sqrt(variance(s) / variance(t)), x, t)


def posterior_mean(x, t):
  """E[x_0 | x_t] = cos s^2 x / V."""
  return _times(jnp.cos(t) * S**2 / variance(t), x, t)


def score(x, t):
  return _times(-1 / variance(t), x, t)


def F_diffusion(x, t):
  """F of the true diffusion model; x is x_t / sigma_data."""
  return dxdt(SIGMA_DATA * x, t) / SIGMA_DATA


def F_consistency(x, t):
  """F of the true consistency model, (cos x_t - f) / (sigma_data sin); x is x_t / sigma_data."""
  c, s = trigflow.cos_sin(t, x)
  x_t = SIGMA_DATA * x
  return (c * x_t - consistency(x_t, t)) / (SIGMA_DATA * s)
