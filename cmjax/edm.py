"""EDM's and CM's parameterisation (arXiv 2206.00364, 2303.01469), and the bridge to TrigFlow.

EDM writes x_sigma = x_0 + sigma eps, and D or f = c_skip x_sigma + c_out F_EDM(c_in x_sigma,
ln(sigma) / 4). With sigma = sigma_data tan(t) and x_sigma = x_t / cos(t), c_in x_sigma is
x_t / sigma_data: an EDM network and a TrigFlow network see the same numbers, and F_EDM = -F (sCM,
appendix B). Consistency models shift sigma by sigma_min in c_skip and in the numerator of c_out, so
that f is the identity at sigma_min; diffusion models do not (sigma_min = 0).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cmjax import trigflow
from cmjax.types import Array, Cond, Data, NetFn, Params, Time


class Preconditioning(NamedTuple):
  """What stands around F_EDM; each is [b]."""

  c_skip: Array
  c_out: Array
  c_in: Array


def precondition(sigma: Time, *, sigma_data: float, sigma_min: float = 0.0) -> Preconditioning:
  """EDM's table 1, shifted by sigma_min in c_skip and c_out as in CM's appendix C.

    c_skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)
    c_out  = sigma_data (sigma - sigma_min) / sqrt(sigma^2 + sigma_data^2)
    c_in   = 1 / sqrt(sigma^2 + sigma_data^2)

  The root in c_out is not shifted. At sigma_min c_skip is 1 and c_out 0, exactly.
  """
  shifted = sigma - sigma_min
  c_in = 1 / jnp.sqrt(sigma**2 + sigma_data**2)
  return Preconditioning(
    c_skip=sigma_data**2 / (shifted**2 + sigma_data**2),
    c_out=sigma_data * shifted * c_in,
    c_in=c_in,
  )


def c_noise(sigma: Array) -> Array:
  """How EDM tells its network the noise level: ln(sigma) / 4."""
  return jnp.log(sigma) / 4


def as_trigflow(apply: NetFn, *, sigma_data: float) -> NetFn:
  """F of a network that was made or trained as F_EDM: F(x, t) = -F_EDM(x, ln(sigma) / 4).

  Exact, without new scales: x_t / sigma_data already is c_in x_sigma. Only for 0 < t < pi/2, since
  the ends have no finite c_noise.

  Args:
    apply: params, c_in x_sigma, c_noise, cond, key -> F_EDM.
    sigma_data: std of the data.
  """

  def net(params, x, t, cond, key):
    sigma = trigflow.t_to_sigma(t, sigma_data=sigma_data)
    return -apply(params, x, c_noise(sigma), cond, key)

  return net


def as_edm(
  net: NetFn, *, sigma_data: float
) -> Callable[[Params, Array, Array, Cond, Array | None], Array]:
  """D(x_sigma; sigma) of a TrigFlow network: the denoiser in EDM's own coordinates.

  Returns:
    params, x_sigma [b, *d], sigma [b], cond, key -> D [b, *d].
  """

  def denoiser(params, x_sigma, sigma, cond, key):
    c = precondition(sigma, sigma_data=sigma_data)
    c_skip, c_out, c_in = (trigflow.per_sample(a, x_sigma) for a in c)
    t = trigflow.sigma_to_t(sigma, sigma_data=sigma_data)
    return c_skip * x_sigma - c_out * net(params, c_in * x_sigma, t, cond, key)

  return denoiser


def consistency(F: Data, x_t: Data, t: Time, *, sigma_data: float, sigma_min: float = 0.0) -> Data:
  """CM's f = c_skip x_sigma + c_out F_EDM, from F = -F_EDM and x_t = cos(t) x_sigma.

  With e = sigma_min / sigma_data and d = sin(t) - e cos(t), the same function is

    f = cos(t) x_t / (d^2 + cos^2(t)) - sigma_data d F,

  which is finite up to t = pi/2, where x_sigma is not. Without a shift it is `trigflow.denoise`.

  Args:
    F: the network's value at (x_t / sigma_data, t) [b, *d].
    x_t: TrigFlow's noisy data [b, *d].
    t: angles [b].
    sigma_data: std of the data.
    sigma_min: the noise level at which f(x_sigma) = x_sigma: 0.002 in CM and iCT.
  """
  cos, sin = trigflow.cos_sin(t, x_t)
  d = sin - sigma_min / sigma_data * cos
  # d^2 + cos^2 is 1 without a shift; rounding it would be the only difference to `denoise`.
  skip = cos / (d**2 + cos**2) if sigma_min else cos
  return skip * x_t - sigma_data * d * F


def shifted(net: NetFn, *, sigma_data: float, sigma_min: float) -> NetFn:
  """A network for which `trigflow.denoise` is the shifted f of `consistency`.

  Samplers and editing then use models of CM and iCT as they use any other. Only for t > 0: at 0 the
  shifted f is not the identity.

  Raises:
    ValueError: if sigma_min is negative.
  """
  if sigma_min < 0:
    raise ValueError(f"sigma_min={sigma_min} is a noise level: 0.002 in CM and iCT, 0 for none.")
  if not sigma_min:
    return net
  e = sigma_min / sigma_data

  def shifted_net(params, x, t, cond, key):
    F = net(params, x, t, cond, key)
    cos, sin = trigflow.cos_sin(t, x)
    d = sin - e * cos
    # (cos(t) x_t - f) / (sigma_data sin(t)), with 1 - 1 / (d^2 + cos^2) written without cancelling.
    skip = cos**2 * e * (e * cos - 2 * sin) / (d**2 + cos**2)
    return (skip * x + d * F) / sin

  return shifted_net
