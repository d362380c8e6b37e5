import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import trigflow
from helpers import exact
from helpers.exact import SIGMA_DATA

SHAPES = [(4, 2), (4, 3, 3, 2), (4,)]


def draw(shape, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  x0 = 0.3 * jax.random.normal(keys[0], shape)
  z = SIGMA_DATA * jax.random.normal(keys[1], shape)
  return x0, z, jax.random.uniform(keys[2], shape[:1], minval=0.05, maxval=1.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_derivative_of_the_path(shape):
  x0, z, t = draw(shape)
  _, v = jax.jvp(lambda t: trigflow.interpolate(x0, z, t), (t,), (jnp.ones_like(t),))
  np.testing.assert_allclose(trigflow.velocity(x0, z, t), v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_with_the_true_velocity_stays_on_the_path_of_one_data_point(shape):
  x0, z, t = draw(shape)
  x_t, v = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)
  for s in (0.5 * t, jnp.zeros_like(t), jnp.full_like(t, np.pi / 2), jnp.minimum(1.5, 1.1 * t)):
    np.testing.assert_allclose(
      trigflow.step(x_t, v, t, s), trigflow.interpolate(x0, z, s), atol=1e-6
    )
  np.testing.assert_allclose(trigflow.denoise(x_t, v, t), x0, atol=1e-6)
  np.testing.assert_allclose(trigflow.predict_noise(x_t, v, t), z, atol=1e-6)


def test_denoise_and_score_of_gaussian_data_are_the_closed_forms():
  with jax.enable_x64(True):
    x = jnp.linspace(-2, 2, 24).reshape(8, 3)
    t = jnp.linspace(0.01, np.pi / 2, 8)
    v = exact.dxdt(x, t)
    np.testing.assert_allclose(trigflow.denoise(x, v, t), exact.posterior_mean(x, t), atol=1e-14)
    score = trigflow.score(x, v, t, sigma_data=SIGMA_DATA)
    np.testing.assert_allclose(score, exact.score(x, t), rtol=1e-10)


def test_sigma_to_t_has_the_golden_values_and_an_inverse():
  golden = {80.0: 1.5645464, 0.002: 0.0039999787, 1.1: 1.14417, 0.821: 1.02378}
  for sigma, t in golden.items():
    assert float(trigflow.sigma_to_t(sigma, sigma_data=0.5)) == pytest.approx(t, abs=5e-6)
    assert float(trigflow.t_to_sigma(t, sigma_data=0.5)) == pytest.approx(sigma, rel=1e-3)
  assert float(trigflow.t_to_sigma(1.1, sigma_data=0.5)) == pytest.approx(0.98238, abs=1e-5)


def test_edm_noise_levels_and_angles_describe_the_same_noisy_data():
  x0, z, _ = draw((4, 3))
  sigma = jnp.array([0.01, 0.3, 2.0, 50.0])
  t = trigflow.sigma_to_t(sigma, sigma_data=SIGMA_DATA)
  x_edm = x0 + sigma[:, None] * z / SIGMA_DATA
  np.testing.assert_allclose(
    trigflow.interpolate(x0, z, t), jnp.cos(t)[:, None] * x_edm, rtol=1e-5, atol=1e-6
  )
