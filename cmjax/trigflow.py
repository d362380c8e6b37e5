"""TrigFlow (Lu & Song 2024, arXiv 2410.11081, section 3 and appendix B).

The process is x_t = cos(t) x_0 + sin(t) z with t in [0, pi/2] and z ~ N(0, sigma_data^2 I). A
network F(x_t / sigma_data, t) of unit scale gives the velocity v = sigma_data F: the PF-ODE of a
diffusion model is dx_t/dt = v (eq. 3), and a step along it from t to s is a rotation. Every
function works for points, images and latents alike: `t` has one entry per sample.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax.types import Array, Data, Time


def per_sample(a: Array, like: Data) -> Array:
  """One value per sample [b], with trailing axes added so that it broadcasts against `like`."""
  return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def cos_sin(t: Time, like: Data) -> tuple[Array, Array]:
  """cos(t) and sin(t), to broadcast against `like`."""
  t = per_sample(t, like)
  return jnp.cos(t), jnp.sin(t)


def noise(
  key: Array, shape: tuple[int, ...], *, sigma_data: float, dtype: Any = jnp.float32
) -> Array:
  """z ~ N(0, sigma_data^2 I), which is also x_t at t = pi/2.

  Args:
    key: of all of it; or [n] keys, of one sample each: then z_i is a function of the i-th alone.
    shape: [n, *d].
    sigma_data: std of the noise.
    dtype: of z.
  """
  if key.ndim:
    draw = lambda key: jax.random.normal(key, (math.prod(shape[1:]),), dtype)
    return sigma_data * jax.vmap(draw)(key).reshape(shape)
  # Drawn flat: the numbers are the same, and on a CPU XLA takes seconds to compile a draw in 4-D.
  return sigma_data * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def interpolate(x0: Data, z: Data, t: Time) -> Data:
  """x_t of a known pair (x_0, z)."""
  c, s = cos_sin(t, x0)
  return c * x0 + s * z


def velocity(x0: Data, z: Data, t: Time) -> Data:
  """dx_t/dt of a known pair (x_0, z): the target of v-prediction (eq. 4)."""
  c, s = cos_sin(t, x0)
  return c * z - s * x0


def step(x_t: Data, v: Data, t: Time, s: Time) -> Data:
  """The DDIM step from t to s along the circle through x_t with velocity v (eq. 26)."""
  c, s = cos_sin(t - s, x_t)
  return c * x_t - s * v


def denoise(x_t: Data, v: Data, t: Time) -> Data:
  """The step to 0: E[x_0 | x_t] of a diffusion model (eq. 23), f of a consistency model (eq. 5)."""
  return step(x_t, v, t, jnp.zeros_like(t))


def heun_step(v: Callable[[Data, Time], Data], x_t: Data, t: Time, s: Time) -> Data:
  """EDM's Heun step from t to s > 0, which is DPM-Solver-2S on TrigFlow (sCM, appendix B.1).

    x_p = step(x_t, v, t, s),   x_s = x_p - sin(t - s) / (2 cos t) (eps(x_p, s) - eps(x_t, t))

  It equals EDM's step on x_t / cos(t); Heun directly on dx/dt in t is a different one.

  Args:
    v: x, t -> velocity.
    x_t: noisy data [b, *d].
    t: where it is [b]; below pi/2.
    s: where to go [b].
  """
  v_t = v(x_t, t)
  x_p = step(x_t, v_t, t, s)
  change = predict_noise(x_p, v(x_p, s), s) - predict_noise(x_t, v_t, t)
  _, sine = cos_sin(t - s, x_t)
  return x_p - sine / (2 * cos_sin(t, x_t)[0]) * change


def predict_noise(x_t: Data, v: Data, t: Time) -> Data:
  """The estimate of z, of std sigma_data: sin(t) x_t + cos(t) v (below eq. 27)."""
  c, s = cos_sin(t, x_t)
  return s * x_t + c * v


def score(x_t: Data, v: Data, t: Time, *, sigma_data: float) -> Data:
  """grad log p_t(x_t) of a diffusion model with velocity v; infinite at t = 0."""
  _, s = cos_sin(t, x_t)
  return -predict_noise(x_t, v, t) / (sigma_data**2 * s)


def sigma_to_t(sigma: ArrayLike, *, sigma_data: float) -> Array:
  """The angle with the signal-to-noise ratio of EDM's noise level: arctan(sigma / sigma_data).

  x_t is then cos(t) times EDM's x_0 + sigma eps (eq. 30).

  >>> round(float(sigma_to_t(80.0, sigma_data=0.5)), 6)
  1.564546
  """
  return jnp.arctan2(sigma, sigma_data)


def t_to_sigma(t: ArrayLike, *, sigma_data: float) -> Array:
  """EDM's noise level of an angle: sigma_data tan(t), the inverse of `sigma_to_t`.

  >>> round(float(t_to_sigma(1.1, sigma_data=0.5)), 4)
  0.9824
  """
  return sigma_data * jnp.tan(t)
