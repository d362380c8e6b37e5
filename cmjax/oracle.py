"""Data of which everything is known: a Gaussian and a mixture of Gaussians in any dimension.

With x_0 ~ N(m, C) all is linear. In the eigenbasis of C, where it has the variances L, x_t has the
mean cos(t) m and the variances V(t) = cos^2 L + sin^2 sigma_data^2; the PF-ODE multiplies each
coordinate of x_t - cos(t) m by sqrt(V(s) / V(t)), and the consistency function is that at s = 0. A
mixture weighs its parts by the responsibilities at (x_t, t); its flow is integrated.

Every function takes and gives NumPy arrays or JAX arrays, and computes in the precision of x: with
NumPy float64 it is a truth to test float32 against, whatever JAX is set to.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.integrate import solve_ivp

from cmjax.types import Array, NetFn, Network

Numbers = ArrayLike | Sequence[Any]


class Oracle(NamedTuple):
  """What is known of a data distribution; x [b, *d], t and s [b], all of one kind of array."""

  sample: Callable[[Array, int], Array]  # key, n -> x_0 [n, *d]
  score: Callable[..., Any]  # x_t, t -> grad log p_t(x_t)
  posterior_mean: Callable[..., Any]  # x_t, t -> E[x_0 | x_t]
  velocity: Callable[..., Any]  # x_t, t -> dx_t/dt of the PF-ODE
  flow: Callable[..., Any]  # x_t, t, s -> x_s on the PF-ODE's solution through x_t
  consistency: Callable[..., Any]  # x_t, t -> x_0 on that solution
  F_diffusion: NetFn  # the F of the true diffusion model
  F_consistency: NetFn  # the F of the true consistency model; t > 0


def network(F: NetFn) -> Network:
  """A `NetFn` that needs no parameters as a `Network`."""
  return Network(lambda key: {}, F)


def gaussian(
  mean: Numbers,
  std: Numbers | None = None,
  *,
  covariance: Numbers | None = None,
  sigma_data: float,
) -> Oracle:
  """Data N(mean, C), all in closed form.

  Args:
    mean: of the data [*d]; its shape is that of a sample.
    std: one number, or one of each coordinate [*d].
    covariance: C [D, D], D the size of a sample, instead of `std`.
    sigma_data: std of the noise z (on purpose not that of the data).

  Raises:
    ValueError: unless exactly one of `std` and `covariance` is given, and that is positive.
  """
  mean, variances, basis = _spectrum(mean, std, covariance)
  shape, linear = mean.shape, _linear(mean, variances, basis, sigma_data)
  score = linear(lambda c, s, m: 0 * m, lambda xp, c, s, L, V: -1 / V)
  posterior_mean = linear(lambda c, s, m: m, lambda xp, c, s, L, V: c * L / V)
  velocity = linear(
    lambda c, s, m: -s * m, lambda xp, c, s, L, V: s * c * (sigma_data**2 - L) / V
  )  # fmt: skip
  move = linear(
    lambda c, s, m, c_s, s_s: c_s * m,
    lambda xp, c, s, L, V, c_s, s_s: xp.sqrt((c_s**2 * L + s_s**2 * sigma_data**2) / V),
  )
  vF = linear(  # sigma_data F of the consistency model
    lambda c, s, m: -s * m,
    # (cos - sqrt(L / V)) / sin without its cancellation at small t.
    lambda xp, c, s, L, V: s * (c**2 * sigma_data**2 - L * (1 + c**2)) / (V * (c + xp.sqrt(L / V))),
  )

  def flow(x, t, s):
    _, *at_s = _cos_sin(x, s)
    return move(x, t, *at_s)

  def sample(key, n):
    u = jax.random.normal(key, (n, math.prod(shape)))
    u = u * jnp.sqrt(jnp.asarray(variances, u.dtype))[None]
    return jnp.asarray(mean, u.dtype)[None] + _from_eigenbasis(u, basis, shape)

  return Oracle(
    sample=sample,
    score=score,
    posterior_mean=posterior_mean,
    velocity=velocity,
    flow=flow,
    consistency=lambda x, t: flow(x, t, 0 * t),
    F_diffusion=_as_net(velocity, sigma_data),
    F_consistency=_as_net(vF, sigma_data),
  )


def mixture(means: Numbers, stds: Numbers, weights: Numbers, *, sigma_data: float) -> Oracle:
  """Data sum_k w_k N(m_k, s_k^2 I).

  score, posterior_mean, velocity and F_diffusion are in closed form. The flow is integrated on the
  host in float64 (DOP853, rtol 1e-10), whatever the precision of x: flow, consistency and
  F_consistency can be neither jitted nor differentiated.

  Args:
    means: m_k [k, *d].
    stds: s_k [k].
    weights: w_k [k]; positive, of any sum.
    sigma_data: std of the noise z.

  Raises:
    ValueError: for numbers of parts that disagree, or stds or weights that are not positive.
  """
  means, stds, weights = _parts(means, stds, weights)
  shape, moments = means.shape[1:], _moments(means, stds, weights, sigma_data)
  of = lambda kind: lambda x, t: moments(x, t, kind)

  def flow(x, t, s):
    start, t0, t1 = (np.asarray(a, np.float64) for a in (x, t, s))

    def slope(tau, y):
      velocity = moments(y.reshape(start.shape), t0 + tau * (t1 - t0), "velocity")
      return (velocity * (t1 - t0).reshape(-1, *[1] * (start.ndim - 1))).ravel()

    solution = solve_ivp(slope, (0, 1), start.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    return x.__array_namespace__().asarray(solution.y[:, -1].reshape(start.shape), dtype=x.dtype)

  def consistency(x, t):
    return flow(x, t, 0 * t)

  def vF(x, t):
    _, c, s = _cos_sin(x, t)
    c, s = (a.reshape(-1, *[1] * (x.ndim - 1)) for a in (c, s))
    return (c * x - consistency(x, t)) / s

  def sample(key, n):
    key_k, key_z = jax.random.split(key)
    k = jax.random.choice(key_k, len(weights), (n,), p=jnp.asarray(weights))
    u = jax.random.normal(key_z, (n, *shape))
    scale = jnp.asarray(stds, u.dtype)[k].reshape(n, *[1] * len(shape))
    return jnp.asarray(means, u.dtype)[k] + scale * u

  return Oracle(
    sample=sample,
    score=of("score"),
    posterior_mean=of("posterior_mean"),
    velocity=of("velocity"),
    flow=flow,
    consistency=consistency,
    F_diffusion=_as_net(of("velocity"), sigma_data),
    F_consistency=_as_net(vF, sigma_data),
  )


def _cos_sin(x, t):
  """The array namespace of x, and cos(t) and sin(t) as [b, 1] in its precision."""
  xp = x.__array_namespace__()
  t = xp.asarray(t, dtype=x.dtype).reshape(-1, 1)
  return xp, xp.cos(t), xp.sin(t)


def _as_net(velocity: Callable[..., Any], sigma_data: float) -> NetFn:
  """params, x = x_t / sigma_data, t, cond, key -> velocity / sigma_data."""
  return lambda params, x, t, cond, key: velocity(sigma_data * x, t) / sigma_data


def _spectrum(mean, std, covariance) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """The mean [*d], variances [D] and eigenbasis [D, D] (columns; None: the coordinates' own)."""
  mean = np.asarray(mean, np.float64)
  if (std is None) == (covariance is None):
    raise ValueError("A Gaussian has either a std or a covariance: give exactly one of them.")
  if covariance is None:
    variances = np.broadcast_to(np.asarray(std, np.float64), mean.shape).ravel() ** 2
    basis = None
  else:
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (mean.size, mean.size) or not np.allclose(matrix, matrix.T):
      raise ValueError(
        f"The covariance of samples of shape {mean.shape} is a symmetric matrix of shape "
        f"{(mean.size, mean.size)}, got one of shape {matrix.shape}."
      )
    variances, basis = np.linalg.eigh(matrix)
  if np.any(variances <= 0) or (std is not None and np.any(np.asarray(std) <= 0)):
    raise ValueError(f"The variances must be positive, got {variances}.")
  return mean, variances, basis


def _to_eigenbasis(x, basis):
  """Samples [b, *d] as [b, D]."""
  flat = x.reshape(len(x), -1)
  return flat if basis is None else _product(flat, basis)


def _from_eigenbasis(y, basis, shape):
  """[b, D] as samples [b, *d]."""
  return (y if basis is None else _product(y, basis.T)).reshape(len(y), *shape)


def _product(x, matrix):
  # Not a matmul: accelerators may do those in less than float32.
  xp = x.__array_namespace__()
  return xp.sum(x[:, :, None] * xp.asarray(matrix, dtype=x.dtype)[None], axis=1)


def _linear(mean, variances, basis, sigma_data):
  """Makes, of an offset and a slope, x, t -> offset + slope (x - cos(t) m).

  Coordinate by coordinate in the eigenbasis and in the precision of x: cos and sin are [b, 1], the
  mean m and the variances L [1, D], and V is that of x_t. offset: cos, sin, m, *args -> [b, D].
  slope: array namespace, cos, sin, L, V, *args -> [b, D].
  """
  center = _to_eigenbasis(mean[None], basis)[0]

  def linear(offset, slope):
    def value(x, t, *args):
      xp, c, s = _cos_sin(x, t)
      m, L = (xp.asarray(a, dtype=x.dtype)[None] for a in (center, variances))
      V = c**2 * L + s**2 * sigma_data**2
      u = _to_eigenbasis(x, basis) - c * m
      y = offset(c, s, m, *args) + slope(xp, c, s, L, V, *args) * u
      return _from_eigenbasis(y, basis, mean.shape)

    return value

  return linear


def _parts(means, stds, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The means [k, *d], stds [k] and weights [k], which sum to 1, of a mixture."""
  means, stds, weights = (np.asarray(a, np.float64) for a in (means, stds, weights))
  if not stds.shape == weights.shape == means.shape[:1]:
    raise ValueError(
      f"A mixture has one mean, std and weight of each part, got arrays of shape {means.shape}, "
      f"{stds.shape} and {weights.shape}: give [k, *d], [k] and [k]."
    )
  if np.any(stds <= 0) or np.any(weights <= 0):
    raise ValueError(f"stds and weights must be positive, got {stds} and {weights}.")
  return means, stds, weights / weights.sum()


def _moments(means, stds, weights, sigma_data):
  """x, t, kind -> sum_k r_k (offset_k + slope_k (x - cos m_k)), r_k the responsibilities."""

  def moments(x, t, kind):
    xp, c, s = _cos_sin(x, t)
    m = xp.asarray(means.reshape(1, len(means), -1), dtype=x.dtype)
    L, w = (xp.asarray(a[None], dtype=x.dtype) for a in (stds**2, np.log(weights)))
    V = c**2 * L + s**2 * sigma_data**2  # [b, k]
    u = x.reshape(len(x), 1, -1) - c[:, :, None] * m  # [b, k, D]
    logits = w - xp.sum(u**2, axis=-1) / (2 * V) - m.shape[-1] / 2 * xp.log(V)
    r = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    r = (r / xp.sum(r, axis=1, keepdims=True))[:, :, None]
    offset, slope = {
      "score": (0 * m, -1 / V),
      "posterior_mean": (m, c * L / V),
      "velocity": (-s[:, :, None] * m, s * c * (sigma_data**2 - L) / V),
    }[kind]
    return xp.sum(r * (offset + slope[:, :, None] * u), axis=1).reshape(x.shape)

  return moments
