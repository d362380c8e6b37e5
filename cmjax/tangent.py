"""The tangent of a consistency function, g = cos(t) df/dt, and its normalisation.

With f = cos(t) x_t - sin(t) sigma_data F(x_t / sigma_data, t), the total derivative along a
trajectory is (sCM, eq. 6)

  df/dt = -cos(t) (sigma_data F - dx_t/dt) - sin(t) (x_t + sigma_data dF/dt).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax import trigflow
from cmjax.types import Array, Data, Time


def tangent(
  net: Callable[[Array, Array], Array],
  x_t: Data,
  t: Time,
  dxdt: Data,
  *,
  sigma_data: float,
  warmup: Array | float = 1.0,
) -> tuple[Data, Data]:
  """F and g = cos(t) df/dt (sCM, Algorithm 1), from one `jax.jvp`.

  F is the primal of the jvp and carries the gradient; g is stopped. The tangents carry the factor
  cos(t) sin(t), so nothing is ever divided by it and nothing overflows at the ends; they are
  (cos sin dx_t/dt / sigma_data, cos sin) and give cos sin dF/dt, to be multiplied by sigma_data.
  (The paper prints both tangents times sigma_data, and the result is then used as it is.)

  Args:
    net: (x, t) -> F, where x is x_t / sigma_data.
    x_t: noisy data [b, *d].
    t: angles [b].
    dxdt: dx_t/dt of the trajectory to follow [b, *d].
    sigma_data: std of the data and of the noise.
    warmup: r in [0, 1]; at 0 only the velocity-matching part is left.

  Returns:
    F [b, *d] of unit scale, and g [b, *d] in units of the data.
  """
  c, s = trigflow.cos_sin(t, x_t)
  cs = c * s
  tangents = jax.lax.stop_gradient((cs * dxdt / sigma_data, jnp.cos(t) * jnp.sin(t)))
  F, cs_dF = jax.jvp(net, (x_t / sigma_data, t), tangents)
  g = -(c**2) * (sigma_data * F - dxdt) - warmup * (cs * x_t + sigma_data * cs_dF)
  return F, jax.lax.stop_gradient(g)


def norm(g: Data, *, rms: bool = False) -> Time:
  """The norm of each sample: L2 over all its axes, or L2 / sqrt(D)."""
  squares = g.reshape(len(g), -1) ** 2
  return jnp.sqrt(jnp.mean(squares, -1) if rms else jnp.sum(squares, -1))


def normalize(g: Data, c: float = 0.1, *, rms: bool = False) -> Data:
  """g / (||g|| + c), per sample (sCM, Algorithm 1).

  The paper writes only ||g||. L2 over each sample is the cmjax default (the replication that comes
  closest uses it); with `rms`, other ports' choice, c matters far more.
  """
  scale = 1 / (norm(g, rms=rms) + c)
  return g * scale.reshape(scale.shape + (1,) * (g.ndim - 1))
