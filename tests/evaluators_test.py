import jax
import numpy as np
import pytest

from cmjax.metrics import evaluators, frechet, wasserstein

KEY = jax.random.key(0)


def gaussian(scale):
  """A sampler whose samples are N(0, (scale * params)^2), a function of the key."""

  def sample(params, key, n):
    return np.asarray(scale * params * jax.random.normal(key, (n, 2, 2, 1)))

  return sample


def test_pixels_are_flat_and_in_zero_to_one():
  images = np.array([[[[-1.0], [1.0]], [[0.0], [0.5]]]], np.float32)
  assert evaluators.pixels(images).tolist() == [[0.0, 1.0, 0.5, 0.75]]


def test_the_frechet_distance_is_that_of_all_samples_of_each_average():
  rng = np.random.default_rng(0)
  train, held_out = rng.normal(size=(4_000, 4)), rng.normal(size=(500, 4))
  features = lambda x: x.reshape(len(x), -1).astype(np.float64)
  reference = frechet.moments(train)
  evaluate = evaluators.frechet_distance(
    {"a": gaussian(1.0)}, features, reference, frechet.moments(held_out),
    emas=("half", "whole"), num_samples=900, batch_size=400,
  )  # fmt: skip
  got = dict(evaluate({"half": 0.5, "whole": 1.0, "unused": 9.0}, KEY))
  assert got["floor"] == frechet.distance(frechet.moments(held_out), reference)
  assert set(got) == {"floor", "a/half", "a/whole"}
  # N(0, 1) against N(0, 1/4) in 4 dimensions: 4 (1 - 1/2)^2.
  assert got["a/half"] == pytest.approx(1.0, abs=0.08)
  assert got["a/whole"] < 0.05
  # 900 samples are two whole batches and a part of the third.
  batches = [gaussian(1.0)(1.0, jax.random.fold_in(KEY, i), 400) for i in range(3)]
  drawn = frechet.moments(features(np.concatenate(batches)[:900]))
  assert got["a/whole"] == pytest.approx(frechet.distance(drawn, reference), rel=1e-9)


def test_the_wasserstein_distance_stands_beside_that_of_two_real_draws():
  rng = np.random.default_rng(0)
  train, held_out = rng.normal(size=(3_000, 2)), rng.normal(size=(3_000, 2))
  points = lambda params, key, n: np.asarray(jax.random.normal(key, (n, 2))) + params
  evaluate = evaluators.sliced_wasserstein(
    {"a": points}, train, held_out, emas=("moved",), num_samples=2_000, batch_size=500
  )
  got = dict(evaluate({"moved": 3.0}, KEY))
  assert got["floor"] == wasserstein.sliced(held_out[:2_000], train[:2_000])
  assert got["a/moved"] == pytest.approx(3.0, abs=0.1)  # |(3, 3)| / sqrt(2)


def test_pictures_are_the_same_at_every_call_and_clipped_to_pixels():
  evaluate = evaluators.samples({"a": gaussian(5.0)}, emas=("e",), num_samples=7)
  (name, first), (_, second) = next(evaluate({"e": 1.0}, KEY)), next(evaluate({"e": 1.0}, KEY))
  assert name == "a_e" and first.shape == (7, 2, 2, 1)
  np.testing.assert_array_equal(first, second)
  assert first.max() == 1.0 and first.min() == -1.0


def test_throughput_leaves_out_the_first_batch(monkeypatch):
  clock = iter([0.0, 100.0, 100.0, 101.0, 101.0, 103.0, 103.0, 105.0])
  monkeypatch.setattr(evaluators.time, "perf_counter", lambda: next(clock))
  evaluate = evaluators.throughput({"a": gaussian(1.0)}, emas=("e",), batch_size=10)
  assert dict(evaluate({"e": 1.0}, KEY)) == {"a": 5.0}
