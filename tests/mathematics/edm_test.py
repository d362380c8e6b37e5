import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import edm, trigflow
from helpers import exact
from helpers.exact import SIGMA_DATA, S

SIGMAS = np.array([0.002, 0.5, 80.0])
# Through float32's angle near pi/2, sigma = 80 itself is known to 1e-5.
BATCH = jnp.array([0.01, 0.3, 1.1, 5.0, 30.0])


def x_of(sigmas, dims=3):
  """x_sigma of Gaussian data, one per noise level."""
  draws = jax.random.normal(jax.random.key(0), (len(sigmas), dims))
  return draws * jnp.sqrt(S**2 + sigmas**2)[:, None]


def F_EDM_of_gaussian_data(x, c_noise):
  """EDM's definition: (D - c_skip x_sigma) / c_out of the exact denoiser, from c_in x_sigma."""
  sigma = jnp.exp(4 * c_noise)[:, None]
  root = jnp.sqrt(sigma**2 + SIGMA_DATA**2)
  x_sigma = x * root
  D = S**2 / (S**2 + sigma**2) * x_sigma
  return (D - SIGMA_DATA**2 / root**2 * x_sigma) / (sigma * SIGMA_DATA / root)


def arbitrary(params, x, c_noise, cond, key):
  """An EDM network of no particular model."""
  return jnp.sin(3 * x) * c_noise[:, None] + params * x**2


def test_preconditioning_has_the_golden_values_of_consistency_models():
  c = edm.precondition(jnp.asarray(SIGMAS), sigma_data=0.5, sigma_min=0.002)
  np.testing.assert_allclose(c.c_skip, [1, 0.50200394, 3.90629e-5], rtol=1e-6)
  np.testing.assert_allclose(c.c_out, [0, 0.35213918, 0.49997773], rtol=1e-6)
  np.testing.assert_allclose(c.c_in, [1.99998400, 1.41421356, 0.01249976], rtol=1e-6)
  golden = [-1.55365202, -0.17328680, 1.09550666]
  np.testing.assert_allclose(edm.c_noise(jnp.asarray(SIGMAS)), golden, rtol=1e-6)


def test_a_diffusion_model_is_preconditioned_without_the_shift():
  c = edm.precondition(jnp.array([0.5]), sigma_data=0.4)
  np.testing.assert_allclose(c.c_skip, [0.16 / 0.41], rtol=1e-6)
  np.testing.assert_allclose(c.c_out, [0.4 * 0.5 / np.sqrt(0.41)], rtol=1e-6)


def test_noise_levels_and_angles_have_their_golden_values():
  sigma = [80.0, 0.002, 1.1, 0.821]
  t = trigflow.sigma_to_t(jnp.array(sigma), sigma_data=0.5)
  np.testing.assert_allclose(t, [1.5645464, 0.0039999787, 1.14417, 1.02378], rtol=1e-5)
  assert float(trigflow.t_to_sigma(1.1, sigma_data=0.5)) == pytest.approx(0.98238, rel=1e-5)
  t_max = trigflow.sigma_to_t(80.0, sigma_data=0.5)
  assert float(jnp.cos(t_max)) == pytest.approx(0.0062499, abs=1e-7)


@pytest.mark.parametrize("sigma_min", [0.0, 0.002, 0.3])
def test_f_is_the_identity_at_sigma_min(sigma_min):
  sigma = jnp.array([max(sigma_min, 1e-9)])
  c = edm.precondition(jnp.array([sigma_min]), sigma_data=SIGMA_DATA, sigma_min=sigma_min)
  assert c.c_skip.tolist() == [1] and c.c_out.tolist() == [0]
  t = trigflow.sigma_to_t(sigma, sigma_data=SIGMA_DATA)
  x_sigma, F = jnp.array([[0.7, -0.2]]), jnp.array([[3.0, -5.0]])
  f = edm.consistency(
    F, jnp.cos(t)[:, None] * x_sigma, t, sigma_data=SIGMA_DATA, sigma_min=sigma_min
  )
  np.testing.assert_allclose(f, x_sigma, rtol=3e-7)


@pytest.mark.parametrize("sigma_min", [0.002, 0.3])
def test_consistency_is_c_skip_x_plus_c_out_F_EDM(sigma_min):
  sigma = jnp.append(BATCH[1:], sigma_min + 1e-4)
  x_sigma = x_of(sigma)
  F_EDM = jax.random.normal(jax.random.key(1), x_sigma.shape)
  shifted = np.asarray(sigma, np.float64)[:, None] - sigma_min
  root = np.sqrt(np.asarray(sigma, np.float64)[:, None] ** 2 + 0.25)
  expected = 0.25 / (shifted**2 + 0.25) * x_sigma + 0.5 * shifted / root * F_EDM
  t = trigflow.sigma_to_t(sigma, sigma_data=0.5)
  f = edm.consistency(-F_EDM, jnp.cos(t)[:, None] * x_sigma, t, sigma_data=0.5, sigma_min=sigma_min)
  np.testing.assert_allclose(f, expected, rtol=1e-5, atol=1e-6)


def test_without_a_shift_consistency_is_the_step_to_zero():
  t = jnp.array([0.0, 0.4, 1.5, jnp.pi / 2])
  x_t, F = x_of(t), jax.random.normal(jax.random.key(1), (4, 3))
  f = edm.consistency(F, x_t, t, sigma_data=SIGMA_DATA)
  np.testing.assert_allclose(f, trigflow.denoise(x_t, SIGMA_DATA * F, t), rtol=1e-6, atol=1e-7)
  # Where x_sigma = x_t / cos(t) is infinite, the shifted one still is not.
  last = edm.consistency(F, x_t, t, sigma_data=SIGMA_DATA, sigma_min=0.002)[-1]
  np.testing.assert_allclose(last, -SIGMA_DATA * F[-1], atol=1e-6)


def test_an_edm_network_seen_as_trigflow_denoises_as_edm_does():
  with jax.enable_x64(True):
    sigma = jnp.asarray(np.append(BATCH, [0.002, 80.0]), jnp.float64)
    x_sigma = x_of(sigma)
    c = edm.precondition(sigma, sigma_data=SIGMA_DATA)
    seen = c.c_in[:, None] * x_sigma
    raw = arbitrary(0.7, seen, jnp.log(sigma) / 4, {}, None)
    expected = c.c_skip[:, None] * x_sigma + c.c_out[:, None] * raw
    t = trigflow.sigma_to_t(sigma, sigma_data=SIGMA_DATA)
    x_t = jnp.cos(t)[:, None] * x_sigma
    net = edm.as_trigflow(arbitrary, sigma_data=SIGMA_DATA)
    F = net(0.7, x_t / SIGMA_DATA, t, {}, None)
    D = trigflow.denoise(x_t, SIGMA_DATA * F, t)
    np.testing.assert_allclose(D, expected, rtol=1e-10)
    back = edm.as_edm(net, sigma_data=SIGMA_DATA)(0.7, x_sigma, sigma, {}, None)
    np.testing.assert_allclose(back, expected, rtol=1e-10)


def test_float32_loses_no_more_than_its_own_rounding():
  x = jax.random.normal(jax.random.key(1), (5, 3))
  t = trigflow.sigma_to_t(BATCH, sigma_data=SIGMA_DATA)
  F = edm.as_trigflow(arbitrary, sigma_data=SIGMA_DATA)(0.7, x, t, {}, None)
  expected = -arbitrary(0.7, x, jnp.log(BATCH) / 4, {}, None)
  np.testing.assert_allclose(F, expected, atol=2e-6)


def test_the_sign_flips_on_gaussian_data():
  t = trigflow.sigma_to_t(BATCH, sigma_data=SIGMA_DATA)
  x = jnp.cos(t)[:, None] * x_of(BATCH) / SIGMA_DATA
  apply = lambda params, x, c_noise, cond, key: F_EDM_of_gaussian_data(x, c_noise)
  F = edm.as_trigflow(apply, sigma_data=SIGMA_DATA)({}, x, t, {}, None)
  np.testing.assert_allclose(F, exact.F_diffusion(x, t), rtol=1e-3, atol=1e-5)
  assert float(jnp.max(jnp.abs(F))) > 0.1  # so that a wrong sign would show


def test_the_edm_denoiser_of_the_true_trigflow_model_is_the_posterior_mean():
  net = lambda params, x, t, cond, key: exact.F_diffusion(x, t)
  x_sigma = x_of(BATCH).reshape(5, 3, 1, 1)
  D = edm.as_edm(net, sigma_data=SIGMA_DATA)({}, x_sigma, BATCH, {}, None)
  factor = S**2 / (S**2 + BATCH**2)
  np.testing.assert_allclose(D, factor.reshape(5, 1, 1, 1) * x_sigma, rtol=1e-3, atol=2e-6)


def test_the_network_gets_c_in_x_once_and_a_quarter_of_the_log():
  seen = {}

  def apply(params, x, c_noise, cond, key):
    seen.update(x=x, c_noise=c_noise, cond=cond, key=key)
    return x

  x_sigma, cond, key = x_of(BATCH), {"label": jnp.arange(5)}, jax.random.key(3)
  net = edm.as_trigflow(apply, sigma_data=SIGMA_DATA)
  edm.as_edm(net, sigma_data=SIGMA_DATA)({}, x_sigma, BATCH, cond, key)
  np.testing.assert_allclose(seen["x"], x_sigma / jnp.sqrt(BATCH**2 + 0.25)[:, None], rtol=1e-6)
  np.testing.assert_allclose(seen["c_noise"], jnp.log(BATCH) / 4, atol=2e-6)
  assert seen["cond"] is cond and seen["key"] is key


@pytest.mark.parametrize("sigma_min", [0.0, 0.002, 0.3])
def test_denoising_with_the_shifted_network_is_the_shifted_f(sigma_min):
  t = trigflow.sigma_to_t(jnp.append(BATCH[1:], 0.3), sigma_data=SIGMA_DATA)
  net = lambda params, x, t, cond, key: jnp.sin(3 * x) + params * t[:, None]
  x_t = x_of(t)
  shifted = edm.shifted(net, sigma_data=SIGMA_DATA, sigma_min=sigma_min)
  F = net(0.7, x_t / SIGMA_DATA, t, {}, None)
  expected = edm.consistency(F, x_t, t, sigma_data=SIGMA_DATA, sigma_min=sigma_min)
  F = shifted(0.7, x_t / SIGMA_DATA, t, {}, None)
  f = trigflow.denoise(x_t, SIGMA_DATA * F, t)
  np.testing.assert_allclose(f, expected, rtol=1e-5, atol=1e-6)


def test_a_negative_sigma_min_is_refused():
  with pytest.raises(ValueError, match="sigma_min=-0.1 is a noise level"):
    edm.shifted(arbitrary, sigma_data=0.5, sigma_min=-0.1)
