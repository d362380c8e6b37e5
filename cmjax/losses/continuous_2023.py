"""Continuous-time consistency models as of 2023 (Song et al., arXiv 2303.01469, appendix B).

In EDM's noise levels sigma, with CM's own f (boundary at sigma_min) and without normalisation: what
came before sCM. With v = df/dsigma, the total derivative along the ODE, G the Hessian of d(x, y) in
y at y = x, H that of d(y, x) in y, and sigma = tau(u) with u uniform on [0, 1], the losses are the
means of

  theorem 3   1/2 lambda / [(tau^-1)']^2 v^T G(f) v      gradient through f and v (a true loss)
  theorem 4       lambda / (tau^-1)'     ||v||_1         the same, for d = l1
  theorem 5       lambda / (tau^-1)'     f^T H(f_-) v_-  f_-, v_- = stop_gradient; distillation
  theorem 6   theorem 5 along the data's own velocity: consistency training

tau is the Karras grid, sigma^(1/rho) uniform, and lambda = (tau^-1)' (cmjax default, as in the
authors' code): the factor of theorems 4, 5, 6 is 1 and that of theorem 3 is dsigma/du.
"""

import jax
import jax.numpy as jnp

from cmjax import edm, tangent, trigflow
from cmjax.base.ranges import Exponent, Sigma
from cmjax.distances import Distance
from cmjax.losses import means
from cmjax.types import Data, LossFn, Network, Time, VelocityFn


def _karras(u: Time, sigma_min: float, sigma_max: float, rho: float) -> tuple[Time, Time]:
  """sigma = tau(u) and dsigma/du."""
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  root = low + u * (high - low)
  return root**rho, rho * root ** (rho - 1) * (high - low)


def hessian_product(distance: Distance, f: Data, v: Data) -> Data:
  """H v, H the Hessian of d(y, f) in y at y = f; by forward over reverse."""
  gradient = jax.grad(lambda y: jnp.sum(distance(y, f)))
  return jax.jvp(gradient, (f,), (v,))[1]


def _per_sample(a: Data) -> Time:
  return jnp.sum(a.reshape(len(a), -1), -1)


def _objective(distance: Distance | str, stop_gradient: bool, norm_form: bool):
  """f, v, dsigma/du -> the value of each sample."""

  def product(f, v):  # H v, or G v
    return 2 * v if isinstance(distance, str) else hessian_product(distance, f, v)

  def pseudo(f, v, speed):
    return _per_sample(f * jax.lax.stop_gradient(product(jax.lax.stop_gradient(f), v)))

  if stop_gradient:
    return pseudo
  if norm_form:
    return lambda f, v, speed: tangent.norm(v)
  if distance == "l1":
    return lambda f, v, speed: _per_sample(jnp.abs(v))
  return lambda f, v, speed: speed * _per_sample(v * product(f, v)) / 2


def _check(distance: Distance | str, stop_gradient: bool, norm_form: bool) -> None:
  if isinstance(distance, str) and distance not in ("squared_l2", "l1"):
    raise ValueError(
      f"Unknown distance {distance!r}. Choose from: squared_l2, l1, or a function (a, b) -> [b]."
    )
  if distance == "l1" and stop_gradient:
    raise ValueError(
      "distance='l1' has no second derivative, which stop_gradient=True needs (theorem 5). Set "
      "stop_gradient=False (theorem 4), or take squared_l2."
    )
  if norm_form and (stop_gradient or distance != "squared_l2"):
    raise ValueError(
      "norm_form=True is for distance='squared_l2' with stop_gradient=False: the form that the "
      "authors' code has of theorem 3."
    )


def loss(
  net: Network,
  velocity: VelocityFn,
  distance: Distance | str = "squared_l2",
  *,
  sigma_data: float,
  sigma_min: Sigma = 0.002,
  sigma_max: Sigma = 80.0,
  rho: Exponent = 7.0,
  stop_gradient: bool = True,
  norm_form: bool = False,
) -> LossFn:
  """Theorems 3 to 6 of CM, appendix B: see the top of this file.

  With stop_gradient the value is not a measure of anything, only its gradient is; watch
  tangent_norm, ||v|| (also by time), which is 0 for a consistency function.

  Args:
    net: the student.
    velocity: `continuous.teacher_velocity` (CD) or `continuous.data_velocity` (CT; theorem 6, so
      only with stop_gradient).
    distance: "squared_l2", "l1" (theorem 4), or any function (a, b) -> [b] that is 0 at a = b with
      a gradient of 0 and has a second derivative there, such as LPIPS or the pseudo-Huber distance.
      (A function whose Hessian is 0, as that of l1, leaves a loss of 0.)
    sigma_data: std of the data.
    sigma_min: where f is the identity.
    sigma_max: the largest noise level.
    rho: sigma^(1/rho) is uniform.
    stop_gradient: theorems 5 and 6 if true, 3 and 4 if not.
    norm_form: E||v|| in place of theorem 3's E||v||^2: the authors' code (jcm), not the paper.

  Raises:
    ValueError: for an unknown distance, or one that does not go with the other arguments.
  """
  _check(distance, stop_gradient, norm_form)
  objective = _objective(distance, stop_gradient, norm_form)

  def loss_fn(params, batch, key, step):
    del step
    x0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    key_t, key_z, key_net = jax.random.split(key, 3)
    u = jax.random.uniform(key_t, (len(x0),))
    sigma, speed = _karras(u, sigma_min, sigma_max, rho)
    t = trigflow.sigma_to_t(sigma, sigma_data=sigma_data)
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(x0, z, t)
    dxdt = velocity(x0, z, x_t, t, cond)
    # (x - D) / sigma, EDM's dx/dsigma, without a division by sigma.
    dx = jax.lax.stop_gradient(trigflow.predict_noise(x_t, dxdt, t)) / sigma_data

    def f_fn(x, sigma):
      t = trigflow.sigma_to_t(sigma, sigma_data=sigma_data)
      x_t = x * trigflow.cos_sin(t, x)[0]
      F = net.apply(params["net"], x_t / sigma_data, t, cond, key_net)
      return edm.consistency(F, x_t, t, sigma_data=sigma_data, sigma_min=sigma_min)

    x = x_t / trigflow.cos_sin(t, x_t)[0]
    with jax.named_scope("tangent"):
      f, v = jax.jvp(f_fn, (x, sigma), (dx, jnp.ones_like(sigma)))
    value = jnp.mean(objective(f, v, speed))
    metrics = {
      "loss": means.mean(value),
      **means.by_time("tangent_norm", tangent.norm(jax.lax.stop_gradient(v)), t),
    }
    return value, metrics

  return loss_fn
