import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import ema

# Measured on the published implementation (edm2), to all digits it gives.
GAMMAS = {
  0.015: 63.658934, 0.02: 46.989582, 0.025: 36.986840, 0.03: 30.317372, 0.04: 21.978250,
  0.05: 16.972199, 0.06: 13.632531, 0.075: 10.289116, 0.10: 6.937204, 0.13: 4.603597,
  0.15: 3.557869, 0.20: 1.826214, 0.25: 0.719824,
}  # fmt: skip


def weights_of(decay, num_steps):
  """How much each of the parameters 1 .. n counts in the average, and the initial ones [0]."""
  one_hot = np.eye(num_steps + 1)
  averages = {"a": jnp.asarray(one_hot[0], jnp.float32)}
  for step in range(num_steps):
    params = jnp.asarray(one_hot[step + 1], jnp.float32)
    averages = ema.update(averages, params, step, {"a": decay})
  return np.asarray(averages["a"])


def test_constant_decay_forgets_geometrically():
  weights = weights_of(ema.constant(0.8), 10)
  expected = np.append(0.8**10, 0.2 * 0.8 ** np.arange(9, -1, -1))
  np.testing.assert_allclose(weights, expected, rtol=1e-5)
  beta = jax.jit(ema.constant(0.9999))(jnp.int32(7))
  assert beta.dtype == jnp.float32 and beta == np.float32(0.9999)


@pytest.mark.parametrize(("sigma_rel", "gamma"), GAMMAS.items())
def test_gamma_is_the_published_one_and_has_its_relative_width(sigma_rel, gamma):
  np.testing.assert_allclose(ema.power_gamma(sigma_rel), gamma, rtol=1e-6)
  g = ema.power_gamma(sigma_rel)
  np.testing.assert_allclose(np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))), sigma_rel, rtol=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.1, 0.2])
def test_power_average_has_the_profile_of_a_power_and_its_width(sigma_rel):
  n = 400
  weights = weights_of(ema.power(sigma_rel, batch_size=64), n)
  assert weights[0] == 0  # initial weights never count
  t = np.arange(n + 1) / n
  g = ema.power_gamma(sigma_rel)
  exact = np.append(0, np.diff(t ** (g + 1)))  # the integral of (g + 1) t^g over each step
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(weights, exact, rtol=2e-4, atol=1e-9)
  mean = weights @ t
  np.testing.assert_allclose(np.sqrt(weights @ (t - mean) ** 2), sigma_rel, rtol=0.01)


def test_power_decay_is_exact_after_a_million_steps_and_the_same_for_all_batch_sizes():
  step = 999_999
  g = ema.power_gamma(0.05)
  for batch_size in (1, 128, 2048):
    decay = ema.power(0.05, batch_size)
    assert decay(0) == 0
    beta = jax.jit(decay)(jnp.int32(step))
    np.testing.assert_allclose(
      1 - np.float64(beta), -np.expm1((g + 1) * np.log1p(-1e-6)), rtol=4e-3
    )


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_constant_decay_is_below_one(beta):
  with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
    ema.constant(beta)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.05, 0.2887, 5.0, float("nan")])
def test_power_decay_has_a_width_that_exists(sigma_rel):
  with pytest.raises(ValueError, match="between 0 and 0.2886"):
    ema.power(sigma_rel, 64)
