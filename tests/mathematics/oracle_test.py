"""The oracles against scalar closed forms, each other, and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import oracle
from helpers import exact

SD = 0.5
SHAPE = (2, 2, 1)
COVARIANCE = np.array([[0.09, 0.02, 0.0, 0.01], [0.02, 0.04, 0.01, 0.0],
                       [0.0, 0.01, 0.16, -0.03], [0.01, 0.0, -0.03, 0.25]])  # fmt: skip
MEAN = np.array([0.3, -0.2, 0.1, 0.4]).reshape(SHAPE)


def full():
  return oracle.gaussian(MEAN, covariance=COVARIANCE, sigma_data=SD)


def mixed():
  means = np.stack([MEAN, -MEAN, 0.5 + 0 * MEAN])
  return oracle.mixture(means, [0.1, 0.3, 0.2], [0.5, 0.2, 0.3], sigma_data=SD)


def points(n=6):
  generator = np.random.default_rng(0)
  return 0.5 * generator.standard_normal((n, *SHAPE)), np.linspace(0.1, 1.56, n)


def log_density(x, t, mean, covariance):
  """log p_t(x) of one Gaussian, from its definition, up to the same constant for all."""
  C = np.cos(t) ** 2 * covariance + np.sin(t) ** 2 * SD**2 * np.eye(4)
  u = (x - np.cos(t) * mean).ravel()
  return -0.5 * (u @ np.linalg.solve(C, u) + np.linalg.slogdet(C)[1])


def log_mixture(x, t):
  means = [MEAN, -MEAN, 0.5 + 0 * MEAN]
  parts = zip(means, (0.1, 0.3, 0.2), (0.5, 0.2, 0.3), strict=True)
  return np.log(sum(w * np.exp(log_density(x, t, m, s**2 * np.eye(4))) for m, s, w in parts))


def gradient(f, x, h=1e-6):
  out = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    e = np.zeros_like(x)
    e[i] = h
    out[i] = (f(x + e) - f(x - e)) / (2 * h)
  return out


DENSITIES = {
  "gaussian": (full, lambda x, t: log_density(x, t, MEAN, COVARIANCE)),
  "mixture": (mixed, log_mixture),
}


@pytest.mark.parametrize("name", ["score", "posterior_mean", "velocity", "consistency"])
def test_an_isotropic_gaussian_agrees_with_the_scalar_closed_forms(name):
  x, t = (jnp.asarray(a, jnp.float32) for a in points())
  ours = oracle.gaussian(np.zeros(SHAPE), exact.S, sigma_data=SD)
  truth = {"velocity": exact.dxdt}.get(name) or getattr(exact, name)
  np.testing.assert_allclose(getattr(ours, name)(x, t), truth(x, t), rtol=1e-5, atol=1e-6)


def test_F_of_both_models_agrees_with_the_scalar_closed_forms():
  x, t = (jnp.asarray(a, jnp.float32) for a in points())
  ours = oracle.gaussian(np.zeros(SHAPE), exact.S, sigma_data=SD)
  np.testing.assert_allclose(
    ours.F_diffusion({}, x, t, {}, None), exact.F_diffusion(x, t), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    ours.F_consistency({}, x, t, {}, None), exact.F_consistency(x, t), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(ours.flow(x, t, t / 2), exact.flow(x, t, t / 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_score_is_the_gradient_of_the_log_density(name):
  make, log_p = DENSITIES[name]
  x, t = points()
  numeric = np.stack([gradient(lambda y, s=s: log_p(y, s), a) for a, s in zip(x, t, strict=True)])
  np.testing.assert_allclose(make().score(x, t), numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_posterior_mean_and_velocity_follow_from_the_score(name):
  """Tweedie: E[z | x] = -sigma_data^2 sin score; x = cos E[x_0] + sin E[z]; v = cos E[z] - ..."""
  ours = DENSITIES[name][0]()
  x, t = points()
  c, s = (f(t).reshape(-1, 1, 1, 1) for f in (np.cos, np.sin))
  z = -(SD**2) * s * ours.score(x, t)
  x0 = (x - s * z) / c
  np.testing.assert_allclose(ours.posterior_mean(x, t), x0, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(ours.velocity(x, t), c * z - s * x0, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_flow_solves_the_pf_ode(name):
  ours = DENSITIES[name][0]()
  x, t = points()
  h = 1e-4
  slope = (ours.flow(x, t, t + h) - ours.flow(x, t, t - h)) / (2 * h)
  np.testing.assert_allclose(slope, ours.velocity(x, t), rtol=1e-6, atol=1e-6)
  there = ours.flow(x, t, t / 3)
  np.testing.assert_allclose(ours.flow(there, t / 3, t), x, rtol=1e-7, atol=1e-8)
  np.testing.assert_allclose(ours.flow(x, t, t), x, rtol=1e-12)
  np.testing.assert_allclose(ours.consistency(there, t / 3), ours.consistency(x, t), atol=1e-7)


@pytest.mark.parametrize("name", DENSITIES)
def test_F_of_the_consistency_model_gives_the_consistency_function(name):
  ours = DENSITIES[name][0]()
  x, t = points()
  c, s = (f(t).reshape(-1, 1, 1, 1) for f in (np.cos, np.sin))
  f = c * x - s * SD * ours.F_consistency({}, x / SD, t, {}, None)
  np.testing.assert_allclose(f, ours.consistency(x, t), rtol=1e-8, atol=1e-10)


def test_F_of_a_gaussian_is_exact_in_float32_at_small_times():
  ours = full()
  x, _ = points()
  t = np.geomspace(1e-5, 1e-2, len(x))
  truth = ours.F_consistency({}, x, t, {}, None)
  single = ours.F_consistency({}, x.astype(np.float32), t.astype(np.float32), {}, None)
  np.testing.assert_allclose(single, truth, rtol=2e-5, atol=1e-7)


def test_a_mixture_of_one_part_is_a_gaussian():
  x, t = points()
  one = oracle.mixture(MEAN[None], [0.3], [2.0], sigma_data=SD)
  ours = oracle.gaussian(MEAN, 0.3, sigma_data=SD)
  for name in ("score", "posterior_mean", "velocity", "consistency"):
    np.testing.assert_allclose(getattr(one, name)(x, t), getattr(ours, name)(x, t), atol=1e-8)


def test_a_diagonal_is_a_covariance_of_that_diagonal():
  x, t = points()
  stds = np.array([0.1, 0.2, 0.3, 0.7]).reshape(SHAPE)
  a = oracle.gaussian(MEAN, stds, sigma_data=SD)
  b = oracle.gaussian(MEAN, covariance=np.diag(stds.ravel() ** 2), sigma_data=SD)
  np.testing.assert_allclose(a.consistency(x, t), b.consistency(x, t), rtol=1e-10)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_have_the_moments_of_the_distribution(name):
  ours = DENSITIES[name][0]()
  x = np.asarray(ours.sample(jax.random.key(0), 20_000), np.float64).reshape(-1, 4)
  if name == "gaussian":
    mean, covariance = MEAN.ravel(), COVARIANCE
  else:
    means, w = np.stack([MEAN, -MEAN, 0.5 + 0 * MEAN]).reshape(3, 4), np.array([0.5, 0.2, 0.3])
    mean = w @ means
    within = w @ np.array([0.1, 0.3, 0.2]) ** 2 * np.eye(4)
    covariance = within + (means - mean).T @ np.diag(w) @ (means - mean)
  np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
  np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.01)


def test_jax_arrays_give_jax_arrays_also_under_jit():
  x, t = points()
  for ours in (full(), mixed()):
    x32, t32 = jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)
    v = jax.jit(ours.velocity)(x32, t32)
    assert v.dtype == jnp.float32
    np.testing.assert_allclose(v, ours.velocity(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: oracle.gaussian(MEAN, sigma_data=SD), "exactly one"),
    (lambda: oracle.gaussian(MEAN, 0.0, sigma_data=SD), "positive"),
    (lambda: oracle.gaussian(MEAN, covariance=-COVARIANCE, sigma_data=SD), "positive"),
    (lambda: oracle.gaussian(MEAN, covariance=np.eye(3), sigma_data=SD), r"shape \(4, 4\)"),
    (lambda: oracle.mixture(MEAN[None], [0.1, 0.2], [1.0], sigma_data=SD), "of each part"),
    (lambda: oracle.mixture(MEAN[None], [0.1], [0.0], sigma_data=SD), "positive"),
  ],
)
def test_data_that_cannot_be_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
