"""Features in, numbers out: closed forms, direct sums, and the same from any batches."""

import logging

import jax
import numpy as np
import pytest

from cmjax.metrics import features, frechet, inception_score, kernel, neighbours, rounding, scoring
from cmjax.metrics.progress import Progress
from helpers.fake_detectors import LINEAR, linear


def points(num=60, dim=5, seed=0, shift=0.0):
  return np.random.default_rng(seed).standard_normal((num, dim)) + shift


# --- kernel distance ------------------------------------------------------------------------------


def direct_kernel_distance(x, y):
  """Equation (1) of kernel.py, a pair at a time."""
  k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3
  within = lambda z: np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
  return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_the_kernel_distance_is_the_double_sum_over_pairs():
  x, y = points(7), points(9, seed=1, shift=0.3)
  np.testing.assert_allclose(kernel.unbiased(x, y), direct_kernel_distance(x, y), rtol=1e-12)


def test_a_subset_of_all_points_is_all_of_them():
  x, y = points(12), points(12, seed=1, shift=0.3)
  found = kernel.distance(x, y, num_subsets=3, subset_size=12)
  np.testing.assert_allclose(found.mean, kernel.unbiased(x, y), rtol=1e-12)
  assert found.std < 1e-12


def test_two_draws_of_one_distribution_are_at_zero_on_average_whatever_their_number():
  for num in (4, 30):
    values = [
      kernel.unbiased(points(num, 3, seed), points(num, 3, 10_000 + seed)) for seed in range(600)
    ]
    assert min(values) < 0  # unbiased: on either side
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_the_kernel_distance_of_gaussians_is_that_of_their_moments():
  # In one dimension E (x y + 1)^3 = m3 n3 + 3 m2 n2 + 3 m1 n1 + 1 of the moments m of x, n of y.
  shift = 0.5
  m, n = (0.0, 1.0, 0.0), (shift, 1 + shift**2, shift**3 + 3 * shift)
  k = lambda a, b: a[2] * b[2] + 3 * a[1] * b[1] + 3 * a[0] * b[0] + 1
  want = k(m, m) + k(n, n) - 2 * k(m, n)
  values = [
    kernel.unbiased(points(200, 1, seed), points(200, 1, 5_000 + seed, shift))
    for seed in range(100)
  ]
  np.testing.assert_allclose(np.mean(values), want, atol=4 * np.std(values) / np.sqrt(100))


def test_the_half_width_holds_the_true_value_as_often_as_it_says():
  def holds(seed):
    found = kernel.distance(
      points(80, 2, seed), points(80, 2, 9_000 + seed), num_subsets=20, subset_size=20
    )
    return abs(found.mean) <= found.half_width

  assert np.mean([holds(seed) for seed in range(60)]) > 0.95  # it is a little too wide


# --- neighbours -----------------------------------------------------------------------------------


def direct_neighbours(fake, real, k, k_density):
  """The definitions, with the whole matrix of distances."""
  distances = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
  radius = lambda x, k: np.sort(distances(x, x) + np.diag(np.full(len(x), np.inf)), 1)[:, k - 1]
  apart = distances(fake, real)
  return (
    (apart <= radius(real, k)[None]).any(1).mean(),
    (apart <= radius(fake, k)[:, None]).any(0).mean(),
    (apart < radius(real, k_density)[None]).sum(1).mean() / k_density,
    (apart.min(0) < radius(real, k_density)).mean(),
  )


@pytest.mark.parametrize("blocks", [(1_024, 8_192), (7, 11), (1, 1)])
def test_neighbours_are_those_of_the_definition_in_any_blocks(monkeypatch, blocks):
  monkeypatch.setattr(neighbours, "ROWS", blocks[0])
  monkeypatch.setattr(neighbours, "COLUMNS", blocks[1])
  fake, real = points(40, 3, 1, 0.8), points(50, 3, 2)
  want = direct_neighbours(fake, real, 3, 5)
  assert 0 < want[0] < 1 and 0 < want[1] < 1 and 0 < want[3] < 1
  np.testing.assert_allclose(neighbours.compare(fake, real), want, rtol=1e-12)


def test_sets_that_are_apart_or_the_same_or_half_of_it_have_the_numbers_that_they_should():
  grid = np.arange(10.0)[:, None] * [[1.0, 0.0]]
  same = neighbours.compare(grid, grid, k=1, k_density=2)
  assert same == (1.0, 1.0, same.density, 1.0)
  # Every ball of k = 2 is open and of radius 1, so that it has its centre alone; at the ends it
  # reaches to 2, and has the one neighbour at 1 as well.
  assert same.density == pytest.approx(12 / 10 / 2)
  far = neighbours.compare(grid + 1_000.0, grid, k=1, k_density=2)
  assert far == (0.0, 0.0, 0.0, 0.0)
  half = neighbours.compare(grid[:5], grid, k=1, k_density=2)
  # Balls of k = 1 around 0 to 4 reach to 5.
  assert (half.precision, half.recall) == (1.0, 0.6)
  assert half.coverage == pytest.approx(5 / 10)


def test_a_copy_of_a_point_is_its_nearest_neighbour():
  x = np.repeat(points(6, 2), 2, axis=0)
  nearest = neighbours.radii(x, (1, 2), np.zeros(2), 0, len(x))
  np.testing.assert_allclose(nearest[:, 0], 0, atol=1e-12)
  assert (nearest[:, 1] > 1e-3).all()


def test_rows_of_neighbours_that_are_split_are_the_same():
  def split(function, num):
    return np.concatenate([function(0, num // 3), function(num // 3, num)])

  fake, real = points(40, 3, 1, 0.8), points(50, 3, 2)
  assert neighbours.compare(fake, real, spread=split) == neighbours.compare(fake, real)


# --- Inception score ------------------------------------------------------------------------------


def test_the_inception_score_of_sure_and_even_classes_is_their_number():
  logits = 1_000.0 * np.eye(7)[np.arange(70) % 7]
  assert inception_score.score(logits) == pytest.approx((7.0, 0.0))
  assert inception_score.score(np.zeros((70, 7))) == pytest.approx((1.0, 0.0))
  one_class = 1_000.0 * np.eye(7)[np.zeros(70, int)]
  assert inception_score.score(one_class) == pytest.approx((1.0, 0.0))


def test_the_inception_score_is_its_definition_on_parts_of_neighbours():
  logits = 2 * points(23, 4)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  values = []
  for part in (p[:7], p[7:15], p[15:]):  # floor(23 i / 3)
    values.append(np.exp(np.mean(np.sum(part * np.log(part / part.mean(0, keepdims=True)), 1))))
  found = inception_score.score(logits, num_splits=3)
  np.testing.assert_allclose(found, (np.mean(values), np.std(values)), rtol=1e-12)


# --- the bias of a Frechet distance ---------------------------------------------------------------


def test_the_bias_is_the_mean_distance_of_equally_many_draws():
  reference = frechet.moments(points(4_000, 30) * np.linspace(0.2, 2.0, 30)[None])
  root = np.linalg.cholesky(reference.covariance)
  drawn = [
    frechet.distance(
      frechet.moments(points(20, 30, 1_000 + s) @ root.T + reference.mean), reference
    )
    for s in range(50)
  ]
  found = [frechet.bias(reference, 20, seed=seed) for seed in range(50)]
  sure = 4 * np.sqrt((np.var(found) + np.var(drawn)) / 50)
  assert np.mean(found) == pytest.approx(np.mean(drawn), abs=sure) and sure < 0.2 * np.mean(drawn)
  assert frechet.bias(reference, 20_000) < 0.01 * np.mean(drawn)
  assert frechet.bias(frechet.moments(np.ones((5, 3))), 4) == 0.0


# --- from any batches -----------------------------------------------------------------------------


def images(num, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3)).astype(np.uint8)


def in_batches(pictures, size, order=None, labels=None):
  order = np.arange(len(pictures)) if order is None else order
  for start in range(0, len(order), size):
    chosen = order[start : start + size]
    yield chosen, pictures[chosen], None if labels is None else labels[chosen]


def test_features_are_the_same_from_any_batches_in_any_order():
  pictures, labels = images(100), np.arange(100) % 3
  whole = features.collect(in_batches(pictures, 100, labels=labels), linear, keep=features.KINDS)
  np.testing.assert_array_equal(whole.rows, linear(pictures).features)
  np.testing.assert_array_equal(whole.labels, labels)
  shuffled = np.random.default_rng(1).permutation(100)
  for size, order in ((7, None), (64, shuffled), (1, shuffled)):
    parts = features.collect(in_batches(pictures, size, order, labels), linear, keep=features.KINDS)
    for kind in ("rows", "spatial_rows", "logits", "labels"):
      np.testing.assert_array_equal(getattr(parts, kind), getattr(whole, kind))
    for kind in ("moments", "spatial_moments"):
      for a, b in zip(getattr(parts, kind), getattr(whole, kind), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-9)
    assert (parts.num, parts.digest) == (100, whole.digest)


def test_a_digest_knows_another_pixel_a_second_copy_and_another_shape():
  digest = lambda x: features.collect(in_batches(x, 10), linear, keep=("moments",)).digest
  pictures = images(20)
  changed = pictures.copy()
  changed[3, 0, 0, 0] ^= 1
  twice = np.concatenate([pictures, pictures[:1]])
  assert len({digest(x) for x in (pictures, changed, twice, pictures.reshape(20, 2, 8, 3))}) == 4


def test_an_image_that_is_counted_twice_is_an_error():
  pictures = images(20)
  twice = [(np.arange(10), pictures[:10], None), (np.arange(9, 20), pictures[9:], None)]
  with pytest.raises(ValueError, match="1 images were counted twice"):
    features.collect(iter(twice), linear, keep=("moments",))
  with pytest.raises(ValueError, match="no images to score"):
    features.collect(iter([]), linear, keep=("moments",))


def test_features_of_several_processes_are_those_of_one():
  """Threads stand for processes: each has its images, and one of them none."""
  pictures = images(100)
  shares = (np.arange(0, 100, 2), np.arange(1, 100, 2), np.zeros(0, int))
  found = together(
    len(shares),
    lambda i, everyone: features.collect(
      in_batches(pictures, 8, shares[i]), linear, keep=features.KINDS, everyone=everyone
    ),
  )
  whole = features.collect(in_batches(pictures, 100), linear, keep=features.KINDS)
  for one in found:
    np.testing.assert_array_equal(one.rows, whole.rows)
    np.testing.assert_allclose(one.moments.scatter, whole.moments.scatter, rtol=1e-12, atol=1e-9)
    assert (one.num, one.digest) == (whole.num, whole.digest)


def together(count, function):
  """function(i, everyone) in threads that gather from each other."""
  import concurrent.futures
  import threading

  barrier, table = threading.Barrier(count), [None] * count

  def everyone_of(i):
    def everyone(array):
      table[i] = array
      barrier.wait(30)
      found = list(table)
      barrier.wait(30)
      return found

    return everyone

  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return list(pool.map(lambda i: function(i, everyone_of(i)), range(count)))


# --- scores ---------------------------------------------------------------------------------------


def looked_at(pictures, scores, labels=None, **options):
  keep = scoring.needs(scores, **options)
  return features.collect(in_batches(pictures, 50, labels=labels), linear, keep=keep)


def reference_of(pictures, scores, labels=None, **options):
  keep = scoring.reference_needs(scores, **options)
  seen = features.collect(in_batches(pictures, 50, labels=labels), linear, keep=keep)
  return features.Reference(seen, {"kind": "cmjax", "num": seen.num, "detector": LINEAR.record})


OPTIONS = scoring.Options(num_subsets=4, subset_size=30)


def test_each_score_is_that_of_its_own_module():
  fake, real, scores = images(80, 1), images(90, 2), tuple(scoring.SCORES)
  found = scoring.values(looked_at(fake, scores), reference_of(real, scores), scores, OPTIONS)
  a, b = linear(fake), linear(real)
  distance = lambda x, y: frechet.distance(frechet.moments(x), frechet.moments(y))
  near = neighbours.compare(a.features, b.features)
  sizes = dict(num_subsets=4, subset_size=30)
  by_kernel, sure = (
    kernel.distance(a.features, b.features, **sizes),
    inception_score.score(a.logits),
  )
  want = {
    "frechet": distance(a.features, b.features),
    "sfid": distance(a.spatial, b.spatial),
    **dict(zip(("kernel", "kernel_std", "kernel_half_width"), by_kernel, strict=True)),
    **near._asdict(),
    **dict(zip(("inception_score", "inception_score_std"), sure, strict=True)),
  }
  assert found.keys() == want.keys()
  for name, value in want.items():
    assert found[name] == pytest.approx(value, rel=1e-9), name


def test_the_values_of_a_class_are_those_of_its_images_alone():
  labels, scores = np.arange(90) % 3, ("frechet", "sfid", "precision_recall")
  fake, real = images(90, 1), images(90, 2)
  found = scoring.class_values(
    looked_at(fake, scores, labels, per_class=True),
    reference_of(real, scores, labels, per_class=True), scores, OPTIONS,
  )  # fmt: skip
  assert list(found) == ["0", "1", "2"]
  for label in range(3):
    alone = scoring.values(
      looked_at(fake[labels == label], scores), reference_of(real[labels == label], scores), scores,
      OPTIONS,
    )  # fmt: skip
    assert found[str(label)] == pytest.approx(alone, rel=1e-9)


def test_too_few_images_are_warned_of_with_the_bias():
  reference = reference_of(images(90), ("frechet",))
  dim = LINEAR.dim
  assert scoring.warnings(dim + 1, reference, ("frechet",)) == []
  assert scoring.warnings(5, reference, ("kernel",)) == []
  (said,) = scoring.warnings(5, reference, ("frechet",))
  assert f"5 images are not more than the {dim} features" in said
  assert f"{frechet.bias(reference.features.moments, 5):.4g} from it" in said


@pytest.mark.parametrize(
  ("scores", "options", "num", "message"),
  [
    (("kernel",), {}, 999, "'kernel' with subset_size=1000 needs 1,000 or more"),
    (("precision_recall",), {"k": 4}, 4, "'precision_recall' with k=4 needs 5 or more"),
    (("inception_score",), {}, 9, "'inception_score' with num_splits=10 needs 10"),
    (("frechet",), {}, 1, "'frechet' needs 2 or more"),
  ],
)
def test_fewer_images_than_a_score_needs_are_refused(scores, options, num, message):
  with pytest.raises(ValueError, match=f"it has {num} images, and the score {message}"):
    scoring.check_numbers(num, scores, scoring.Options(**options), "it")


# --- rounding -------------------------------------------------------------------------------------


def test_stored_images_survive_either_way_of_rounding_that_is_for_them():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  samples = levels.astype(np.float32) / 127.5 - 1
  np.testing.assert_array_equal(rounding.to_uint8(samples, "round"), levels)
  above = (levels.astype(np.float64) + 0.4) / 127.5 - 1
  np.testing.assert_array_equal(rounding.to_uint8(above, "truncate"), levels)


def test_the_two_rules_differ_by_half_a_level_and_both_end_at_black_and_white():
  x = np.array([-9.0, -1.0, 0.6 / 127.5 - 1, 1.4 / 127.5 - 1, 1.0, 9.0]).reshape(1, 1, 6, 1)
  assert rounding.to_uint8(x, "round").ravel().tolist() == [0, 0, 1, 1, 255, 255]
  assert rounding.to_uint8(x, "truncate").ravel().tolist() == [0, 0, 0, 1, 255, 255]


# --- errors and progress --------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: kernel.unbiased(points(5, 2), points(5, 3)), "got 2 and 3.*same detector"),
    (lambda: kernel.unbiased(points(1), points(5)), "at least 2 points, got 1 and 5"),
    (
      lambda: kernel.distance(points(9), points(5)),
      "1,000 points cannot .* out of 9 samples and 5",
    ),
    (lambda: kernel.distance(points(9), points(9), num_subsets=1), "num_subsets >= 2"),
    (
      lambda: neighbours.compare(points(9), points(5)),
      "more than 5 points, got 5 of the reference",
    ),
    (lambda: neighbours.compare(points(9), points(9), k=0), "from 1, got k=0"),
    (
      lambda: neighbours.compare(points(9), points(9) * np.nan),
      "9 of 9 rows of features of the ref",
    ),
    (lambda: neighbours.compare(points(9), points(9, 4)), "got 5 and 4"),
    (lambda: inception_score.score(points(9)), "9 images cannot be split into 10 parts"),
    (lambda: rounding.to_uint8(points(3), "floor"), "'floor'. Choose from: round, truncate"),
    (lambda: rounding.to_uint8(points(3) * np.inf, "round"), "15 of 15 values .* diverged"),
    (lambda: scoring.check_scores(("fid",)), "one or more of: frechet, sfid, kernel"),
    (lambda: scoring.check_scores(()), "one or more of"),
    (lambda: scoring.check_scores(("frechet", "frechet")), "each once"),
  ],
)
def test_bad_input_is_refused_with_advice(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_detector_without_an_output_names_the_score_that_needs_it():
  bare = lambda x: linear(x)._replace(spatial=None, logits=None)
  for kind, word in (("spatial_moments", "sfid"), ("logits", "inception_score")):
    with pytest.raises(ValueError, match=word):
      features.collect(in_batches(images(5), 5), bare, keep=(kind,))


def test_long_evaluations_say_how_far_they_are_and_short_ones_nothing(caplog):
  now = iter([0.0, 50.0, 60.0, 70.0, 100.0, 110.0])
  with caplog.at_level(logging.INFO, "cmjax"):
    progress = Progress("Scoring heun (main)", 1_000, clock=lambda: next(now))
    for _ in range(5):
      progress.add(200)
  # The first batch took 50 s, 40 of them to compile: the others 10 to 30.
  assert [record.message for record in caplog.records] == [
    "Scoring heun (main): 400 of 1,000 images, 20 a second, ETA 0:00:30.",
    "Scoring heun (main): 800 of 1,000 images, 12 a second, ETA 0:00:17.",
  ]


def test_jax_arrays_are_features_too():
  x = points(12).astype(np.float32)
  assert kernel.unbiased(jax.numpy.asarray(x), x[::-1]) == kernel.unbiased(x, x[::-1])


def test_small_batches_are_looked_at_together_and_give_the_same():
  rng = np.random.default_rng(5)
  pictures = rng.integers(0, 255, (101, 4, 4, 3)).astype(np.uint8)
  labels, sizes = np.arange(101) % 3, []

  def looked_at(images):
    sizes.append(len(images))
    return linear(images)

  found = [
    features.collect(
      in_batches(pictures, 8, labels=labels), looked_at, keep=features.KINDS, rows=rows
    )
    for rows in (1, 32)
  ]
  assert sizes == [8] * 12 + [5] + [32] * 3 + [5]
  assert found[0].digest == found[1].digest
  np.testing.assert_array_equal(found[0].rows, found[1].rows)
  np.testing.assert_array_equal(found[0].labels, found[1].labels)
  a, b = (one.moments.covariance for one in found)
  np.testing.assert_allclose(a, b, rtol=1e-12)
