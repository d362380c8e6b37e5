"""What every sampler takes: times that are checked, keys, and the velocity of a network.

A sampler's `key` is of all noise, or an array [n] of one key for each sample: the noise of a sample
then depends on its own key alone, in whatever batch it is.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.types import Array, Cond, NetFn, Params

Times = Sequence[float] | np.ndarray


def check_times(times: Times, *, ends_in_zero: bool, below_half_pi: bool = False) -> np.ndarray:
  """The times as float64, or an error that says what is wrong with them."""
  times = np.asarray(times, np.float64)
  if times.ndim != 1 or not len(times) or not np.all(np.diff(times) < 0):
    raise ValueError(f"Sampler times must be a decreasing sequence of angles, got {times}.")
  if not (times[0] <= np.pi / 2 and times[-1] >= 0):
    raise ValueError(f"Sampler times are angles in [0, pi/2], got {times}: for EDM noise levels "
                     "use trigflow.sigma_to_t.")  # fmt: skip
  if ends_in_zero and (times[-1] != 0 or len(times) < 2):
    raise ValueError(f"An ODE sampler's times must end in 0, got {times}: append a 0.")
  if not ends_in_zero and times[-1] == 0:
    raise ValueError(f"A consistency model has nothing to do at t = 0, got {times}: drop the 0.")
  if below_half_pi and np.cos(times[0]) < 1e-6:
    raise ValueError(f"This sampler divides by cos(t) and cannot start at pi/2, got {times}: start "
                     "at arctan(sigma_max / sigma_data), or use ddim.")  # fmt: skip
  return times


def velocity(
  net: NetFn, params: Params, cond: Cond, sigma_data: float
) -> Callable[[Array, Array], Array]:
  """x, t -> sigma_data F; t is one for the whole batch, or one of each sample."""

  def v(x, t):
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), (len(x),))
    return sigma_data * net(params, x / sigma_data, t, cond, None)

  return v


def split(key: Array, num: int) -> Array:
  """`num` keys out of one; out of [n] keys, [num, n]."""
  if not key.ndim:
    return jax.random.split(key, num)
  return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(key)


def fold_in(key: Array, data: int) -> Array:
  """`jax.random.fold_in` of one key or of each of [n]."""
  if not key.ndim:
    return jax.random.fold_in(key, data)
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(key)


def pairs(angles: Array) -> Array:
  """Where each step starts and ends, [n, 2]."""
  return jnp.stack([angles[:-1], angles[1:]], -1)
