import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import tangent, trigflow

import exact
from exact import SIGMA_DATA


def points(n=64, d=3, seed=0):
  key_x, key_t = jax.random.split(jax.random.key(seed))
  t = jax.random.uniform(key_t, (n,), minval=0.01, maxval=np.pi / 2 - 0.01)
  return jax.random.normal(key_x, (n, d)), t


def net(x, t):
  """Nothing special about it."""
  return jnp.sin(3 * x) * t[:, None] + x**2


def f(x_t, t):
  return trigflow.denoise(x_t, SIGMA_DATA * net(x_t / SIGMA_DATA, t), t)


def test_the_tangent_of_the_true_consistency_function_vanishes():
  with jax.enable_x64(True):
    x, t = points()
    F, g = tangent.tangent(exact.F_consistency, x, t, exact.dxdt(x, t), sigma_data=SIGMA_DATA)
    assert float(jnp.max(jnp.abs(g))) < 1e-5
    np.testing.assert_allclose(F, exact.F_consistency(x / SIGMA_DATA, t))
    # And it is no accident: along another trajectory it does not.
    _, g = tangent.tangent(exact.F_consistency, x, t, 2 * exact.dxdt(x, t), sigma_data=SIGMA_DATA)
    assert float(jnp.max(jnp.abs(g))) > 0.1


def test_the_tangent_is_cos_t_times_the_derivative_of_f_by_finite_differences():
  with jax.enable_x64(True):
    x, t = points()
    dxdt = jnp.cos(5 * x)
    _, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA)
    h = 1e-6
    df = (f(x + h * dxdt, t + h) - f(x - h * dxdt, t - h)) / (2 * h)
    np.testing.assert_allclose(g, jnp.cos(t)[:, None] * df, rtol=1e-7, atol=1e-7)


def test_both_conventions_for_the_tangents_of_the_jvp_agree():
  x, t = points()
  dxdt = jnp.cos(5 * x)
  c, s = trigflow.cos_sin(t, x)
  # As printed in the paper: both tangents times sigma_data, and the result used as it is.
  F, dF = jax.jvp(net, (x / SIGMA_DATA, t), (c * s * dxdt, jnp.cos(t) * jnp.sin(t) * SIGMA_DATA))
  expected = -(c**2) * (SIGMA_DATA * F - dxdt) - (c * s * x + dF)
  _, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA)
  np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5)


def test_without_warmup_only_velocity_matching_is_left():
  x, t = points()
  dxdt = jnp.cos(x)
  F, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA, warmup=0.0)
  np.testing.assert_allclose(g, -(jnp.cos(t)[:, None] ** 2) * (SIGMA_DATA * F - dxdt), rtol=1e-5)


def test_the_tangent_carries_no_gradient_but_F_does():
  x, t = points()

  def value(scale, pick):
    scaled = lambda x, t: scale * net(x, t)
    return jnp.sum(tangent.tangent(scaled, x, t, scale * x, sigma_data=SIGMA_DATA)[pick])

  assert float(jax.grad(value)(1.0, 1)) == 0.0
  assert float(jax.grad(value)(2.0, 0)) == pytest.approx(
    float(jnp.sum(net(x / SIGMA_DATA, t))), rel=1e-5
  )


def test_the_tangent_is_finite_at_both_ends():
  x = jnp.ones((2, 3))
  _, g = tangent.tangent(net, x, jnp.array([0.0, np.pi / 2]), x, sigma_data=SIGMA_DATA)
  assert bool(jnp.all(jnp.isfinite(g)))


@pytest.mark.parametrize("rms", [False, True])
def test_normalize_scales_each_sample_to_its_norm_over_norm_plus_c(rms):
  g = jax.random.normal(jax.random.key(0), (5, 4, 4, 2)) * jnp.array(
    [1e-6, 0.01, 1.0, 30.0, 1e4]
  ).reshape(5, 1, 1, 1)
  flat = np.asarray(g, np.float64).reshape(5, -1)
  length = np.linalg.norm(flat, axis=-1) / (np.sqrt(32) if rms else 1)
  np.testing.assert_allclose(tangent.norm(g, rms=rms), length, rtol=1e-5)
  normalized = np.asarray(tangent.normalize(g, 0.1, rms=rms)).reshape(5, -1)
  np.testing.assert_allclose(normalized, flat / (length + 0.1)[:, None], rtol=1e-5)
  assert bool(jnp.all(tangent.normalize(jnp.zeros((2, 3)), 0.1) == 0))
