import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from cmjax.metrics import frechet, wasserstein

DIM = 6


def features(num=50, dim=DIM, seed=0):
  """Correlated, far from centred, of very different scales."""
  rng = np.random.default_rng(seed)
  mixing = rng.standard_normal((dim, dim)) * np.logspace(-1, 1, dim)
  return rng.standard_normal((num, dim)) @ mixing + 3.0 * rng.standard_normal(dim)


def rotation(dim=DIM, seed=7):
  return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def assert_same_moments(a, b, rtol=1e-12):
  assert a.num == b.num
  np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=rtol)
  np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol, atol=rtol * np.abs(b.scatter).max())


# --- moments ------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy():
  x = features()
  m = frechet.moments(x)
  assert m.num == 50
  np.testing.assert_allclose(m.mean, x.mean(axis=0), rtol=1e-14)
  np.testing.assert_allclose(m.covariance, np.cov(x, rowvar=False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [[50], [25, 25], [49, 1], [1] * 50, [7, 1, 20, 22]])
def test_streaming_over_any_split_equals_the_whole(sizes):
  x = features()
  batches = np.split(x, np.cumsum(sizes)[:-1])
  assert_same_moments(frechet.streaming(iter(batches)), frechet.moments(x))


def test_merge_is_commutative_to_the_bit_and_associative():
  a, b, c = (frechet.moments(features(num, seed=num)) for num in (3, 10, 40))
  for got, want in zip(frechet.merge(a, b), frechet.merge(b, a), strict=True):
    np.testing.assert_array_equal(got, want)
  left = frechet.merge(frechet.merge(a, b), c)
  assert_same_moments(left, frechet.merge(a, frechet.merge(b, c)))


def test_variances_far_from_zero_do_not_cancel():
  x = features()
  near, far = frechet.moments(x), frechet.streaming(np.split(x + 1e6, 10))
  np.testing.assert_allclose(far.scatter, near.scatter, rtol=1e-7, atol=1e-6)


def test_float32_and_jax_features_are_accumulated_in_float64():
  x = features().astype(np.float32)
  for same in (x, jnp.asarray(x)):
    m = frechet.moments(same)
    assert m.mean.dtype == m.scatter.dtype == np.float64
    assert_same_moments(m, frechet.moments(x.astype(np.float64)))


def test_published_statistics_are_moments():
  x = features()
  m = frechet.from_covariance(x.mean(axis=0), np.cov(x, rowvar=False), num=50)
  assert_same_moments(m, frechet.moments(x))


# --- Fréchet distance ----------------------------------------------------------------------------


def test_distance_of_gaussians_that_commute_is_the_closed_form():
  V = rotation()
  a, b = np.linspace(0.5, 3.0, DIM), np.linspace(2.0, 0.1, DIM)  # standard deviations
  mu_a, mu_b = np.arange(DIM) - 1.0, np.ones(DIM)
  got = frechet.distance(
    frechet.from_covariance(mu_a, V * a**2 @ V.T), frechet.from_covariance(mu_b, V * b**2 @ V.T)
  )
  want = np.sum((mu_a - mu_b) ** 2) + np.sum((a - b) ** 2)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_distance_in_one_dimension_is_that_of_means_and_standard_deviations():
  a = frechet.from_covariance(np.array([0.5]), np.array([[4.0]]))
  b = frechet.from_covariance(np.array([2.0]), np.array([[0.25]]))
  np.testing.assert_allclose(frechet.distance(a, b), 1.5**2 + 1.5**2, rtol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_the_definition_by_a_matrix_square_root(seed):
  a, b = frechet.moments(features(seed=seed)), frechet.moments(features(80, seed=seed + 100))
  S_a, S_b = a.covariance, b.covariance
  assert np.abs(S_a @ S_b - S_b @ S_a).max() > 1.0  # they do not commute
  root = scipy.linalg.sqrtm(S_a @ S_b).real
  want = np.sum((a.mean - b.mean) ** 2) + np.trace(S_a + S_b - 2 * root)
  np.testing.assert_allclose(frechet.distance(a, b), want, rtol=1e-8)


def test_distance_to_itself_is_zero_and_both_ways_the_same():
  a, b = frechet.moments(features(seed=1)), frechet.moments(features(seed=2))
  scale = np.trace(a.covariance)
  assert frechet.distance(a, a) <= 1e-13 * scale
  np.testing.assert_allclose(frechet.distance(a, b), frechet.distance(b, a), rtol=1e-12)


def test_distance_ignores_rotations_and_shifts_and_scales_with_the_square():
  x, y, V = features(seed=1), features(seed=2), rotation()
  distance = lambda x, y: frechet.distance(frechet.moments(x), frechet.moments(y))
  want = distance(x, y)
  np.testing.assert_allclose(distance(x @ V + 5.0, y @ V + 5.0), want, rtol=1e-10)
  np.testing.assert_allclose(distance(0.5 * x, 0.5 * y), 0.25 * want, rtol=1e-12)


@pytest.mark.parametrize("num_x, num_y", [(5, 5), (400, 5), (5, 400)])
def test_singular_covariances_are_as_accurate_as_others(num_x, num_y):
  # With S = A A^T, tr((S_a S_b)^(1/2)) is the sum of the singular values of A^T B: small here, and
  # computed from the samples themselves. Roots of rounding errors would show at 1e-7.
  x, y = features(num_x, 200, seed=1) / 10, features(num_y, 200, seed=2) / 10
  A, B = (((v - v.mean(axis=0)) / np.sqrt(len(v) - 1)).T for v in (x, y))
  overlap = np.linalg.svd(A.T @ B, compute_uv=False).sum()
  shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
  want = shift + np.sum(A**2) + np.sum(B**2) - 2 * overlap
  a, b = frechet.moments(x), frechet.moments(y)
  np.testing.assert_allclose(frechet.distance(a, b), want, rtol=1e-12)
  assert frechet.distance(a, a) < 1e-12 * np.sum(A**2)


def test_no_variance_at_all_leaves_the_distance_of_the_means():
  a, b = frechet.moments(np.zeros((3, 2))), frechet.moments(np.full((4, 2), 2.0))
  assert frechet.distance(a, b) == 8.0


def test_more_samples_lower_the_bias():
  def between(num):
    rng = np.random.default_rng(num)
    draw = lambda: frechet.moments(rng.standard_normal((num, DIM)))
    return np.mean([frechet.distance(draw(), draw()) for _ in range(20)])

  ratio = between(100) / between(1600)
  assert 8 < ratio < 32  # as 1 / n: 16


def test_statistics_rounded_to_float32_are_accepted_with_their_rounding():
  x, y = features(8, 20, seed=1), features(8, 20, seed=2)  # singular: rounding goes below 0
  exact = frechet.distance(frechet.moments(x), frechet.moments(y))
  S = np.cov(x, rowvar=False).astype(np.float32)
  assert np.linalg.eigvalsh(S.astype(np.float64))[0] < -1e-9 * np.abs(S).max()
  rounded = frechet.from_covariance(x.mean(axis=0), S)
  np.testing.assert_allclose(frechet.distance(rounded, frechet.moments(y)), exact, rtol=1e-3)


def with_nan():
  x = features()
  x[3, 2], x[3, 3], x[8, 0] = np.nan, np.inf, -np.inf
  return x


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: frechet.moments(np.zeros((4, 2, 2))), r"shape \[n, d\].*got \[4, 2, 2\].*Flatten"),
    (lambda: frechet.moments(np.zeros(4)), r"shape \[n, d\].*got \[4\]"),
    (lambda: frechet.moments(np.zeros((0, 4))), r"at least 1, got \[0, 4\]"),
    (lambda: frechet.moments(with_nan()), "2 of 50 rows of features hold NaN or infinity"),
    (lambda: frechet.streaming([]), "at least one batch"),
    (lambda: frechet.streaming([np.ones((2, 3)), np.ones((2, 4))]), "got 3 and 4.*merged"),
    (
      lambda: frechet.distance(frechet.moments(features(dim=3)), frechet.moments(features(dim=4))),
      "got 3 and 4.*same detector",
    ),
    (
      lambda: frechet.distance(frechet.moments(features()), frechet.moments(features(1))),
      "at least 2 samples, got 1",
    ),
    (
      lambda: frechet.distance(*[frechet.from_covariance(np.zeros(2), np.diag([1.0, -0.1]))] * 2),
      "negative eigenvalues, got -0.1",
    ),
    (
      lambda: frechet.distance(*[frechet.from_covariance(np.zeros(1), -np.eye(1))] * 2),
      "negative eigenvalues, got -1",
    ),
    (lambda: frechet.from_covariance(np.zeros(3), np.eye(2)), r"got \[3\] and \[2, 2\].*swapped"),
    (lambda: frechet.from_covariance(np.full(2, np.nan), np.eye(2)), "1 of 1 rows of mean"),
    (lambda: frechet.from_covariance(np.zeros(2), np.eye(2) + [[0, 1], [0, 0]]), "symmetric"),
    (lambda: frechet.from_covariance(np.zeros(2), np.eye(2), num=1), "got num=1"),
  ],
)
def test_bad_features_are_refused_with_advice(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# --- sliced Wasserstein distance -----------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_shift_is_measured_exactly(dim):
  x, shift = features(30, dim), np.linspace(1.0, 2.0, dim)
  want = np.linalg.norm(shift) / np.sqrt(dim)
  got = wasserstein.sliced(x, x + shift, num_projections=4 * dim)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_shift_along_few_directions_is_right_on_average():
  x, shift = features(10, 3), np.array([1.0, -2.0, 0.5])
  squared = [
    wasserstein.sliced(x, x + shift, num_projections=4, seed=seed) ** 2 for seed in range(2000)
  ]
  np.testing.assert_allclose(np.mean(squared), shift @ shift / 3, rtol=0.03)


def test_a_cloud_and_its_multiple_are_apart_by_the_difference_in_size():
  x = features(30, 3)
  got = wasserstein.sliced(x, 2.5 * x, num_projections=6)
  np.testing.assert_allclose(got, 1.5 * np.sqrt(np.mean(x**2)), rtol=1e-12)


def test_gaussians_of_different_scale_are_apart_by_the_difference_of_the_scales():
  rng = np.random.default_rng(0)
  x, y = 0.5 * rng.standard_normal((20_000, 2)), 2.0 * rng.standard_normal((15_000, 2))
  np.testing.assert_allclose(wasserstein.sliced(x, y), 1.5, rtol=0.02)


def test_unequal_numbers_are_matched_by_their_quantiles():
  x, y = features(4, 2, seed=1), features(6, 2, seed=2)
  # Three copies of x and two of y are the same distributions, with twelve points each.
  copies = wasserstein.sliced(np.repeat(x, 3, axis=0), np.repeat(y, 2, axis=0))
  np.testing.assert_allclose(wasserstein.sliced(x, y), copies, rtol=1e-12)
  # All of the mass goes to a single point.
  one = np.sqrt(np.mean((x[:, 0] - 3.0) ** 2))
  np.testing.assert_allclose(wasserstein.sliced(x[:, :1], np.full((1, 1), 3.0)), one, rtol=1e-12)


def test_it_is_a_distance():
  x, y, z = features(20, seed=1), features(30, seed=2), features(25, seed=3)
  shuffled = np.random.default_rng(0).permutation(x)
  assert wasserstein.sliced(x, shuffled) == 0.0
  d_xy, d_yz, d_xz = (wasserstein.sliced(*p) for p in ((x, y), (y, z), (x, z)))
  assert d_xy == wasserstein.sliced(y, x)
  assert d_xz < d_xy + d_yz
  np.testing.assert_allclose(wasserstein.sliced(0.5 * x, 0.5 * y), 0.5 * d_xy, rtol=1e-12)


def test_the_seed_chooses_the_directions():
  x, y = features(20, seed=1), features(30, seed=2)
  one, two = (wasserstein.sliced(x, y, num_projections=3, seed=seed) for seed in (1, 2))
  assert one != two
  assert one == wasserstein.sliced(x, y, num_projections=3, seed=1)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: wasserstein.sliced(np.zeros((2, 4, 4, 3)), np.zeros((2, 48))), "x must.*Flatten"),
    (lambda: wasserstein.sliced(np.zeros((2, 3)), np.zeros((2, 4))), "got 3 and 4"),
    (lambda: wasserstein.sliced(features(), with_nan()), "2 of 50 rows of y"),
    (lambda: wasserstein.sliced(features(), features(), num_projections=0), "at least 1, got 0"),
  ],
)
def test_bad_points_are_refused_with_advice(call, message):
  with pytest.raises(ValueError, match=message):
    call()
