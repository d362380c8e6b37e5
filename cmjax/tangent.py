"""The tangent of a consistency function, g = cos(t) df/dt, and its normalisation.

With f = cos(t) x_t - sin(t) sigma_data F(x_t / sigma_data, t), the total derivative along a
trajectory is (sCM, eq. 6)

  df/dt = -cos(t) (sigma_data F - dx_t/dt) - sin(t) (x_t + sigma_data dF/dt).

A consistency function to t_k instead of 0 (multistep sCD) has t - t_k in each cos and sin; t_k is
the `origin`. An `Estimator` is one way to dF/dt: `exact` is a `jax.jvp`, the others are for code
that compares with them (finite differences, discrete time). All take F from one call per time with
the same closure, so they share its dropout key.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from cmjax import trigflow
from cmjax.base.ranges import Range
from cmjax.types import Array, Data, Time

Step = Annotated[float, Range(0, 1, "()")]  # of a finite difference

# net, x_t, t, dxdt, *, sigma_data, warmup, origin -> F, g. As `tangent`.
Estimator = Callable[..., tuple[Data, Data]]


def tangent(
  net: Callable[[Array, Array], Array],
  x_t: Data,
  t: Time,
  dxdt: Data,
  *,
  sigma_data: float,
  warmup: Array | float = 1.0,
  origin: Array | float = 0.0,
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
    origin: t_k <= t, where the consistency function leads to [b]; 0 for data.

  Returns:
    F [b, *d] of unit scale, and g = cos(t - t_k) df/dt [b, *d] in units of the data.
  """
  angle = t - origin
  c, s = trigflow.cos_sin(angle, x_t)
  cs = c * s
  tangents = jax.lax.stop_gradient((cs * dxdt / sigma_data, jnp.cos(angle) * jnp.sin(angle)))
  F, cs_dF = jax.jvp(net, (x_t / sigma_data, t), tangents)
  return F, _assemble(F, cs_dF, x_t, angle, dxdt, sigma_data, warmup)


def _assemble(F, cs_dF, x_t, angle, dxdt, sigma_data, warmup):
  """g of F and cos sin dF/dt, stopped; the angle is t - t_k."""
  c, s = trigflow.cos_sin(angle, x_t)
  g = -(c**2) * (sigma_data * F - dxdt) - warmup * (c * s * x_t + sigma_data * cs_dF)
  return jax.lax.stop_gradient(g)


def exact() -> Estimator:
  """The derivative itself: `tangent`."""
  return tangent


def central(h: Step = 1e-4) -> Estimator:
  """dF/dt by a central difference in float64 along the straight line x_t + (s - t) dx_t/dt.

  The step is h cos(t) sin(t), so the line stays between 0 and pi/2, the difference over 2 h is
  cos sin dF/dt, and nothing is divided by cos sin. The error is O(h^2). In float32 rounding alone
  would be of the order 1e-7 / h, which is more than the truncation error at any useful h; so both
  values are taken in float64, also inside a jitted float32 train step (`jax.enable_x64` while it is
  traced), and only their difference comes back. F itself keeps its dtype and costs one more call.

  For CPU and GPU: a TPU has no float64 (XLA would emulate it).

  Raises:
    ValueError: for a step outside (0, 1); while tracing, if the network answers in less than
      float64 to inputs in float64.
  """
  _check_step(h)

  def estimator(net, x_t, t, dxdt, *, sigma_data, warmup=1.0, origin=0.0):
    F, angle = net(x_t / sigma_data, t), t - origin
    with jax.enable_x64(True):
      wide = jax.lax.stop_gradient((x_t, t, dxdt, angle))
      x, time, velocity, delta = (a.astype(jnp.float64) for a in wide)
      move = h * jnp.cos(delta) * jnp.sin(delta)

      def along(sign):
        path = x + sign * trigflow.per_sample(move, x) * velocity
        return _float64(net(path / sigma_data, time + sign * move))

      # A scalar of this context: outside it, 2 h would be rounded to float32.
      cs_dF = (along(1.0) - along(-1.0)) / jnp.float64(2 * h)
      cs_dF = jax.lax.stop_gradient(cs_dF).astype(x_t.dtype)
    return F, _assemble(F, cs_dF, x_t, angle, dxdt, sigma_data, warmup)

  return estimator


def semi_continuous(h: Step = 5e-3) -> Estimator:
  """dF/dt = grad_x F . dx_t/dt by `jax.jvp` + d_t F by a central difference in t of step h.

  The name is that of one setting of rCM's `fd_type` switch (exact, semi-continuous, discrete); that
  it means this is our reading, unconfirmed. It is for networks whose derivative in t is not
  available or not stable. Works in the dtype of the inputs: in float32 the error is about
  h^2 + 1e-7 / h, smallest near the default. As in `central`, the step carries cos(t) sin(t).

  Raises:
    ValueError: for a step outside (0, 1).
  """
  _check_step(h)

  def estimator(net, x_t, t, dxdt, *, sigma_data, warmup=1.0, origin=0.0):
    x, angle = x_t / sigma_data, t - origin
    cs = jnp.cos(angle) * jnp.sin(angle)
    direction = jax.lax.stop_gradient(trigflow.per_sample(cs, x_t) * dxdt / sigma_data)
    F, by_x = jax.jvp(lambda x: net(x, t), (x,), (direction,))
    by_t = (net(x, t + h * cs) - net(x, t - h * cs)) / (2 * h)
    return F, _assemble(F, by_x + by_t, x_t, angle, dxdt, sigma_data, warmup)

  return estimator


def discrete(below: Callable[[Array], Array]) -> Estimator:
  """dsCM, dsCD: the tangent between t and the next lower time t' of a grid (sCM, appendix E).

    x_t' = cos(t-t') x_t - sin(t-t') dx_t/dt                              (one DDIM step)
    Delta(r) = -cos(t') (sigma_data F - dx_t/dt)
               - r sin(t') (x_t + sigma_data (cos(t-t') F - F') / sin(t-t')),   g = cos(t) Delta(r)

  At r = 1, Delta is (f(x_t, t) - f(x_t', t')) / sin(t - t'); it goes to df/dt as O(t - t').

  Args:
    below: t -> t' [b], with 0 <= t' < t. In a segment that starts at t_k the step ends there at
      the latest, and the cos and sin of a single time have it less t_k.
  """

  def estimator(net, x_t, t, dxdt, *, sigma_data, warmup=1.0, origin=0.0):
    t_next = jnp.maximum(below(t), origin)
    at_end = t_next <= origin
    x_next = trigflow.step(x_t, dxdt, t, t_next)
    F = net(x_t / sigma_data, t)
    # At the end f is x for any F: ask for it at t, since not every network is finite at 0.
    F_next = net(x_next / sigma_data, jnp.where(at_end, t, t_next))
    c_gap, s_gap = trigflow.cos_sin(t - t_next, x_t)
    c_next, s_next = trigflow.cos_sin(t_next - origin, x_t)
    dF = (c_gap * F - F_next) / s_gap
    delta = -c_next * (sigma_data * F - dxdt) - warmup * s_next * (x_t + sigma_data * dF)
    return F, jax.lax.stop_gradient(trigflow.per_sample(jnp.cos(t - origin), x_t) * delta)

  return estimator


def _check_step(h: float) -> None:
  if not 0 < h < 1:
    raise ValueError(f"The step of a finite difference must be in (0, 1), got h={h}. Try 1e-3.")


def _float64(F: Data) -> Data:
  if F.dtype != jnp.float64:
    raise ValueError(
      f"tangent.central takes differences in float64, but the network answered in {F.dtype} to x "
      "and t in float64. Give it dtype='float64' and start with JAX_ENABLE_X64=1 (or "
      "jax.config.update('jax_enable_x64', True)); or take tangent.exact, which needs neither."
    )
  return F


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
  return g * trigflow.per_sample(scale, g)
