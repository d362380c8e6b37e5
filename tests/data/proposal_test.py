import numpy as np
import pytest

from cmjax.data import proposal

LAMBDA = np.array([9.0, 1.0, 0.25, 0.04, 0.01, 0.01])
SIGMA = np.exp(proposal.LOG_SIGMA)


def gaussian(spectrum, num, seed=0):
  """Points [num, d] of N(3, R diag(spectrum) R^T), R a random rotation."""
  rng = np.random.default_rng(seed)
  rotation = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))[0]
  return 3 + (rng.standard_normal((num, len(spectrum))) * np.sqrt(spectrum)) @ rotation


def true_gain(spectrum):
  """The gain of the best denoiser of a Gaussian: 1 - mean_i mmse_i over that of equal variances."""
  noise, S = SIGMA[:, None] ** 2, np.mean(spectrum)
  error = np.mean(spectrum * noise / (spectrum + noise), axis=1)
  return 1 - error / (S * SIGMA**2 / (S + SIGMA**2))


@pytest.fixture(name="gain", scope="module")
def _gain():
  """What is measured of Gaussian data."""
  return proposal.measure(gaussian(LAMBDA, 40_000))


def test_the_linear_gain_of_gaussian_data_is_that_of_its_spectrum(gain):
  np.testing.assert_allclose(gain.linear, true_gain(LAMBDA), atol=0.02)
  # The best denoiser of a Gaussian is linear, so that nothing can beat it.
  assert np.all(gain.best <= true_gain(LAMBDA) + 0.03)


def test_the_proposal_is_the_mean_and_std_of_the_squared_gain(gain):
  p = proposal.teacher(gain)
  w = true_gain(LAMBDA) ** 2
  mean = np.sum(w * proposal.LOG_SIGMA) / np.sum(w)
  std = np.sqrt(np.sum(w * (proposal.LOG_SIGMA - mean) ** 2) / np.sum(w))
  assert p.P_mean == pytest.approx(mean, abs=0.05)
  assert p.P_std == pytest.approx(std, abs=0.05)


def test_a_proposal_moves_with_the_scale_of_the_data():
  x = gaussian(LAMBDA, 8_000)
  a, b = proposal.measure(x), proposal.measure(0.2 * x)
  assert b.sigma_data == pytest.approx(0.2 * a.sigma_data)
  p, q = proposal.teacher(a), proposal.teacher(b)
  assert q.P_mean == pytest.approx(p.P_mean + np.log(0.2), abs=0.05)
  assert q.P_std == pytest.approx(p.P_std, abs=0.05)
  p, q = (
    proposal.consistency(p, sigma_data=g.sigma_data) for p, g in ((p, a), (q, b))
  )  # fmt: skip
  assert q.P_mean == pytest.approx(p.P_mean + np.log(0.2), abs=0.05)


def test_fewer_images_than_dimensions_do_not_make_more_of_the_data():
  spectrum = np.geomspace(4.0, 0.01, 200)
  gain = proposal.measure(gaussian(spectrum, 160))
  assert np.all(gain.linear <= true_gain(spectrum) + 0.1)
  assert gain.linear.max() > 0.1


def test_wiener_s_error_is_that_of_a_simulation():
  spectrum, sigma = np.array([4.0, 0.25]), np.array([0.5])
  rng = np.random.default_rng(0)
  x = rng.standard_normal((400_000, 2)) * np.sqrt(spectrum)
  y = x + 0.5 * rng.standard_normal(x.shape)
  D = spectrum / (spectrum + 0.25) * y
  want = np.mean((D - x) ** 2)
  assert proposal.linear_error(spectrum, sigma)[0] == pytest.approx(want, rel=0.01)


def test_the_mixture_of_two_points_is_a_hyperbolic_tangent():
  a = np.array([[0.7]], np.float32)
  held_out = np.where(np.arange(256) % 2, 0.7, -0.7)[:, None].astype(np.float32)
  sigma = np.array([0.3, 0.7, 3.0])
  got = proposal.mixture_error(np.concatenate([a, -a]), held_out, sigma, np.random.default_rng(5))
  z = np.random.default_rng(5).standard_normal(held_out.shape, np.float32)
  for s, error in zip(sigma, got, strict=True):
    D = 0.7 * np.tanh(0.7 * (held_out + s * z) / s**2)
    assert error == pytest.approx(np.mean((D - held_out) ** 2), rel=1e-4)


def test_the_mixture_s_posterior_mean_is_bayes_rule_over_the_points():
  points = np.array([[0.2, 0.1], [1.0, -0.5], [-2.0, 0.4]], np.float32)
  held_out = np.array([[0.3, 0.0], [-1.5, 0.5]], np.float32)
  got = proposal.mixture_error(points, held_out, np.array([0.8]), np.random.default_rng(5))
  y = held_out + 0.8 * np.random.default_rng(5).standard_normal(held_out.shape, np.float32)
  p = np.exp(-np.sum((y[:, None] - points[None]) ** 2, -1) / (2 * 0.8**2))
  D = p @ points / p.sum(1, keepdims=True)
  assert got[0] == pytest.approx(np.mean((D - held_out) ** 2), rel=1e-4)


def test_the_mixture_sees_what_no_correlation_shows():
  rng = np.random.default_rng(0)
  angle = rng.uniform(0, 2 * np.pi, 8_000)
  gain = proposal.measure(np.stack([np.cos(angle), np.sin(angle)], 1))
  assert np.abs(gain.linear).max() < 0.02 and gain.mixture.max() > 0.3


def test_isotropic_noise_has_no_proposal():
  gain = proposal.measure(gaussian(np.full(16, 0.25), 8_000))
  with pytest.raises(ValueError, match="isotropic"):
    proposal.teacher(gain)


@pytest.mark.parametrize(
  "teacher, model",
  [((-1.2, 1.2), (-1.0, 1.4)), ((-0.8, 1.6), (-1.0, 1.6)), ((-0.4, 1.0), (-0.8, 1.6))],
)
def test_consistency_models_get_about_what_scm_gave_them(teacher, model):
  got = proposal.consistency(proposal.Proposal(*teacher), sigma_data=0.5)
  assert got.P_mean == pytest.approx(model[0], abs=0.08)
  assert got.P_std == pytest.approx(model[1], abs=0.11)


def test_bytes_are_scaled_to_minus_one_to_one():
  images = np.random.default_rng(0).integers(0, 2, (64, 4, 4, 1)).astype(np.uint8) * 255
  assert proposal.measure(images).sigma_data == pytest.approx(1.0, abs=0.01)


def test_data_without_anything_to_measure_is_refused():
  with pytest.raises(ValueError, match="at least 16 images, got 3"):
    proposal.measure(np.zeros((3, 2)))
  with pytest.raises(ValueError, match="the same"):
    proposal.measure(np.ones((32, 2)))
