"""What the rows compare with: data of known flow, a test network, and definitions in float64.

The truths are NumPy in float64 and written from the papers' definitions, on purpose without a call
to the formulas that they check.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import oracle
from cmjax.types import Array, NetFn, Network

SD = 0.5  # sigma_data of most rows; never 1, which would hide a lost factor
OTHER_SD = 0.7
SHAPE = (2, 2, 1)
MEAN = np.array([0.3, -0.2, 0.1, 0.4]).reshape(SHAPE)
STDS = np.array([0.1, 0.3, 0.6, 0.4]).reshape(SHAPE)
WAVE = {"a": np.float64(0.8)}


def gaussian(sigma_data: float = SD) -> oracle.Oracle:
  """N(MEAN, diag(STDS^2))."""
  return oracle.gaussian(MEAN, STDS, sigma_data=sigma_data)


def mixture(sigma_data: float = SD) -> oracle.Oracle:
  """Two unequal isotropic parts."""
  means = np.stack([MEAN, -2 * MEAN])
  return oracle.mixture(means, [0.2, 0.3], [0.4, 0.6], sigma_data=sigma_data)


def points() -> tuple[np.ndarray, ...]:
  """x0, z (of SD), t and a smaller s of six samples, in float64."""
  generator = np.random.default_rng(0)
  x0, z = 0.5 * generator.standard_normal((2, 6, *SHAPE))
  t = np.linspace(0.15, 1.5, 6)
  return x0, z, t, t * np.linspace(0.2, 0.9, 6)


def on_device(*arrays: np.ndarray) -> list[Array]:
  """In float32."""
  return [jnp.asarray(a, jnp.float32) for a in arrays]


def along(t, x):
  """[b] with the trailing axes of x."""
  return t.reshape(-1, *[1] * (x.ndim - 1))


def sums(x):
  """The sum of each sample."""
  return np.sum(x.reshape(len(x), -1), -1)


def wave(params, x, t, cond, key):
  """A network with nothing special about it: NumPy in float64, JAX, dropout by `key`."""
  xp = x.__array_namespace__()
  t = along(t, x)
  F = params["a"] * xp.sin(3 * x) * xp.cos(t) + 0.3 * t * x**2 + 0.2
  for name, factor in (("guidance", 0.1), ("segment", 0.2)):
    if name in cond:
      F = F + factor * along(cond[name], x) * x
  return F if key is None else F * (0.5 + jax.random.uniform(key, x.shape))


def plain(params, x, t, cond, key):
  """`wave` without dropout."""
  return wave(params, x, t, cond, None)


def params_of(**others: Any) -> dict[str, Any]:
  """What a LossFn is given, for `wave`."""
  return {"net": {"a": jnp.float32(WAVE["a"])}, "weighting": {}, **others}


def net_of(apply: NetFn = plain) -> Network:
  """A `Network` of a function with the parameters of `wave`."""
  return Network(lambda key: params_of()["net"], apply)


def F64(x, t, cond: dict | None = None):
  """The F of `plain` in float64."""
  return wave(WAVE, x, t, cond or {}, None)


def f64(F: Callable, x, t, sigma_data, origin: Any = 0.0):
  """cos(t - origin) x - sin(t - origin) sigma_data F(x / sigma_data, t), in float64."""
  angle = along(t - origin, x)
  return np.cos(angle) * x - np.sin(angle) * sigma_data * F(x / sigma_data, t)


def df64(F: Callable, x, t, dxdt, sigma_data, origin: Any = 0.0, h: float = 1e-5):
  """df/dt along dx/dt by central differences."""
  step = along(np.full(len(t), h), x) * dxdt
  above = f64(F, x + step, t + h, sigma_data, origin)
  return (above - f64(F, x - step, t - h, sigma_data, origin)) / (2 * h)


def f_shifted(F, x_t, t, sigma_min, sigma_data=SD):
  """CM's f of TrigFlow's F and x_t, in float64."""
  sigma = sigma_data * np.tan(t)
  c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
  c_out = sigma_data * (sigma - sigma_min) / np.hypot(sigma, sigma_data)
  return along(c_skip, x_t) * x_t / along(np.cos(t), x_t) - along(c_out, x_t) * F


def edm_heun(v, x, angles, sigma_data, *, to_zero: bool = True):
  """EDM's algorithm 1 on x_t / cos(t), in float64."""
  sigmas = sigma_data * np.tan(angles)

  def D(x, sigma):
    t = np.full(len(x), np.arctan2(sigma, sigma_data))
    c, s = np.cos(t[0]), np.sin(t[0])
    return c * (c * x) - s * v(c * x, t)

  x = x / np.cos(angles[0])
  for sigma, lower in zip(sigmas[:-1], sigmas[1:], strict=True):
    d = (x - D(x, sigma)) / sigma
    ahead = x + (lower - sigma) * d
    if lower > 0:
      d = (d + (ahead - D(ahead, lower)) / lower) / 2
    x = x + (lower - sigma) * d
  return x if to_zero else np.cos(angles[-1]) * x


def fixed_times(key, shape):
  """A proposal that proposes nothing new."""
  return jnp.linspace(0.15, 1.5, shape[0])


def batch_of(n: int = 6) -> dict[str, Array]:
  """Samples of `gaussian`."""
  return {"image": gaussian().sample(jax.random.key(1), n)}


def value_and_slope(loss_fn, params, batch, step: float = 0.0):
  """loss, d loss / d net.a, metrics, with one key."""
  (value, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    params, batch, jax.random.key(3), jnp.asarray(step)
  )
  return value, grads["net"]["a"], metrics


def value_alone(loss_fn, params, batch, step: float = 0.0):
  """loss, None, metrics: `value_and_slope` without the slope."""
  value, metrics = loss_fn(params, batch, jax.random.key(3), jnp.asarray(step))
  return value, None, metrics
