import logging

import jax
import numpy as np
import pytest

from cmjax.metrics import evaluators, features, frechet, rounding, scoring, wasserstein
from helpers.fake_detectors import LINEAR, linear

KEY = jax.random.key(0)


def gaussian(scale, shape=(2, 2, 1)):
  """A sampler of N(0, (scale * params)^2), each sample a function of the key and its number."""

  def sample(params, key, numbers):
    seed = jax.random.key_data(key).tolist()
    drawn = [np.random.default_rng([*seed, i]).standard_normal(shape) for i in numbers.tolist()]
    return numbers, (scale * params * np.stack(drawn)).astype(np.float32)

  return sample


def shares(sampler, index, count):
  """The part of what `sampler` draws that one of several processes has."""

  def sample(params, key, numbers):
    numbers, drawn = sampler(params, key, numbers)
    return numbers[index::count], drawn[index::count]

  return sample


def pictures(num, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3)).astype(np.uint8)


def batch(images, labels=None):
  yield np.arange(len(images)), images, labels


def make_scorer(scores=("frechet",), train=300, held_out=80, **options):
  labels = np.arange(train) % 3
  keep = scoring.reference_needs(scores, **options)
  seen = features.collect(batch(pictures(train), labels), linear, keep=keep)
  keep = scoring.needs(scores, **options)
  others = features.collect(
    batch(pictures(held_out, 1), np.arange(held_out) % 3), linear, keep=keep
  )
  record = {"score": LINEAR.score, "detector": LINEAR.record, "rounding": "round", "options": {}}
  reference = features.Reference(seen, {"kind": "cmjax", "num": train, "digest": seen.digest})
  settings = scoring.Options(num_subsets=5, subset_size=40)
  return evaluators.Scorer(
    LINEAR, scores, settings, lambda: reference, lambda: others, record, **options
  )


SAMPLER = gaussian(0.3, (4, 4, 3))
TO_IMAGES = lambda x: rounding.to_uint8(x, "round")
ABOUT = evaluators.About(
  {"a": {"key": "a", "nfe": 2}}, {"main": {"key": "main"}}, {"seed": 5, "labels": None}
)


def image_scores(scorer, sampler=SAMPLER, about=ABOUT, **kwargs):
  given = dict(emas=("main",), num_samples=120, batch_size=50) | kwargs
  return evaluators.image_scores({"a": sampler}, scorer, about, TO_IMAGES, **given)


def test_scores_are_those_of_exactly_the_samples_asked_for():
  scorer = make_scorer()
  got = dict(image_scores(scorer)({"main": 1.0, "unused": 9.0}, KEY))
  assert set(got) == {"floor", "a/main", "a_main"}
  reference = scorer.reference().features.moments
  distance = lambda x: frechet.distance(frechet.moments(linear(x).features), reference)
  assert got["floor"] == pytest.approx(distance(pictures(80, 1)), rel=1e-9)
  # 120 samples are two whole batches of 50 and a part of the third.
  drawn = TO_IMAGES(SAMPLER(1.0, KEY, np.arange(120))[1])
  assert got["a/main"] == pytest.approx(distance(drawn), rel=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_scores_do_not_depend_on_the_batch_size(batch_size):
  scores = tuple(scoring.SCORES)
  values = lambda **kw: dict(image_scores(make_scorer(scores), **kw)({"main": 1.0}, KEY))
  want, got = values(batch_size=120), values(batch_size=batch_size)
  assert got["a_main"]["images"] == want["a_main"]["images"]
  for name, value in want["a_main"]["values"].items():
    assert got["a_main"]["values"][name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_a_card_says_how_its_numbers_were_made():
  scorer = make_scorer(("frechet", "kernel", "precision_recall"))
  got = dict(image_scores(scorer)({"main": 1.0}, KEY))
  card = got["a_main"]
  assert card["values"]["frechet"] == got["a/main"]
  assert card["values"]["precision"] == got["a/main/precision"]
  assert card["floor"]["recall"] == got["floor/recall"] and card["floor_num"] == 80
  assert "kernel_std" in card["values"] and "a/main/kernel_std" not in got
  seen = features.collect(
    batch(TO_IMAGES(SAMPLER(1.0, KEY, np.arange(120))[1])), linear, keep=("moments",)
  )
  assert card["images"] == {
    "kind": "samples", "num": 120, "digest": seen.digest, "first": 0, "seed": 5, "labels": None,
  }  # fmt: skip
  assert card["sampler"] == {"key": "a", "nfe": 2} and card["ema"] == {"key": "main"}
  assert card["detector"] == LINEAR.record and card["rounding"] == "round"
  assert card["reference"]["num"] == 300 and "repetitions" not in card


def test_the_best_of_three_is_that_of_each_value_and_all_are_on_the_card():
  evaluate = image_scores(make_scorer(("frechet", "density_coverage")), best_of=3, num_samples=60)
  card = dict(evaluate({"main": 1.0}, KEY))["a_main"]
  sets = card["repetitions"]
  assert [one["images"]["first"] for one in sets] == [0, 60, 120] and card["best_of"] == 3
  assert len({one["images"]["digest"] for one in sets}) == 3
  assert card["values"]["frechet"] == min(one["values"]["frechet"] for one in sets)
  assert card["values"]["density"] == max(one["values"]["density"] for one in sets)
  alone = image_scores(make_scorer(), num_samples=180)
  assert dict(alone({"main": 1.0}, KEY))["a_main"]["images"]["num"] == 180


def test_what_stands_beside_the_best_value_is_of_the_same_set():
  sets = [{"kernel": 2.0, "kernel_std": 0.1}, {"kernel": 1.0, "kernel_std": 0.3}]
  assert evaluators._best(sets) == {"kernel": 1.0, "kernel_std": 0.3}


def test_a_card_has_the_values_of_each_class():
  scorer = make_scorer(per_class=True)
  about = ABOUT._replace(num_classes=3)
  card = dict(image_scores(scorer, about=about)({"main": 1.0}, KEY))["a_main"]
  drawn = TO_IMAGES(SAMPLER(1.0, KEY, np.arange(120))[1])
  real = frechet.moments(linear(pictures(300)[np.arange(300) % 3 == 2]).features)
  want = frechet.distance(frechet.moments(linear(drawn[2::3]).features), real)
  assert list(card["classes"]) == ["0", "1", "2"]
  assert card["classes"]["2"]["frechet"] == pytest.approx(want, rel=1e-9)


def test_too_few_samples_are_said_in_the_log_and_on_the_card(caplog):
  with caplog.at_level(logging.WARNING, "cmjax"):
    card = dict(image_scores(make_scorer(), num_samples=5)({"main": 1.0}, KEY))["a_main"]
  assert "5 images are not more than the 6 features" in card["warnings"][0]
  assert card["warnings"][0] in caplog.text


def test_a_model_that_has_diverged_is_an_error():
  with pytest.raises(ValueError, match="NaN or infinite: the model or the sampler has diverged"):
    dict(image_scores(make_scorer())({"main": np.nan}, KEY))


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "best_of"])
def test_counts_are_at_least_one(name):
  with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
    image_scores(make_scorer(), **{name: 0})


def test_the_wasserstein_distance_stands_beside_that_of_two_real_draws():
  rng = np.random.default_rng(0)
  train, held_out = rng.normal(size=(3_000, 2)), rng.normal(size=(3_000, 2))
  points = lambda params, key, numbers: (
    numbers,
    gaussian(1.0, (2,))(1.0, key, numbers)[1] + params,
  )
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


def test_many_samples_are_drawn_in_batches_of_one_size_and_are_those_of_one_batch():
  sizes, draw = [], gaussian(1.0)

  def sample(params, key, numbers):
    sizes.append(len(numbers))
    return draw(params, key, numbers)

  expected = evaluators.whole(draw, 1.0, KEY, 20)
  np.testing.assert_array_equal(evaluators.whole(sample, 1.0, KEY, 20, batch_size=8), expected)
  assert sizes == [8, 8, 8]


def test_pictures_of_several_processes_are_put_in_order():
  together = [shares(gaussian(1.0), i, 2)(1.0, KEY, np.arange(7)) for i in range(2)]
  everyone = lambda own: [part[0 if own.dtype.kind == "i" else 1] for part in together]
  found = evaluators.whole(shares(gaussian(1.0), 0, 2), 1.0, KEY, 7, everyone)
  np.testing.assert_array_equal(found, gaussian(1.0)(1.0, KEY, np.arange(7))[1])


def test_throughput_leaves_out_the_first_batch(monkeypatch):
  clock = iter([0.0, 100.0, 100.0, 101.0, 101.0, 103.0, 103.0, 105.0])
  monkeypatch.setattr(evaluators.time, "perf_counter", lambda: next(clock))
  evaluate = evaluators.throughput({"a": gaussian(1.0)}, emas=("e",), batch_size=10)
  assert dict(evaluate({"e": 1.0}, KEY)) == {"a": 5.0}
