"""From a config to cards: what looks at images, what they are compared with, what is refused."""

import json
import logging
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from cmjax import experiment
from cmjax.base import sharding
from cmjax.data import image_sets, sources
from cmjax.data import manifest as manifests
from cmjax.experiment import evaluation
from cmjax.metrics import cards, classifier, compare, frechet, wasserstein
from cmjax.program import sample, score_files
from cmjax.run import charts
from helpers import prepared_sets, tiny

MESH = sharding.make_mesh()
pytestmark = pytest.mark.usefixtures("shared_programs")
ALL = ("frechet", "kernel", "precision_recall", "density_coverage")


def given(data="digits", **fd):
  """The experiment of `configure`."""
  return experiment.parse(configure(data, **fd))


def configure(data="digits", **fd):
  """The tiny config on digits, or on points, with one evaluator of images."""
  c = tiny.config().unlock()
  if data == "digits":
    c.data.name = "digits"
    c.net = dict(
      name="ddpmpp", resolution=8, in_channels=1, channels=4, channel_mult=(1,), num_blocks=1,
      attn_resolutions=(), num_classes=0, dtype="float32",
    )  # fmt: skip
  section = dict(
    name="frechet", features="pixels", samplers=("one_step",), emas=("main",), every_steps=1,
    num_samples=100, batch_size=50, subset_size=80, num_subsets=4,
  )  # fmt: skip
  c.evals = dict(fd=section | fd)
  return c


def held_out():
  return sources.as_array(sources.digits(split="test"))[0]


def pixels_distance(images):
  real = sources.as_array(sources.digits())[0]
  flat = lambda x: frechet.moments(x.reshape(len(x), -1) / 255)
  return frechet.distance(flat(images), flat(real))


def evaluate(tmp_path, images, **fd):
  """The card of images under a config."""
  said = sample.evaluate_images(given(**fd), tmp_path / "scores", images)
  path, _, numbers = said.partition(": ")
  return cards.read(path), numbers


# --- images that are there ------------------------------------------------------------------------


def test_held_out_images_as_samples_have_the_floor(tmp_path):
  np.savez(tmp_path / "a.npz", arr_0=held_out())
  card, numbers = evaluate(tmp_path, tmp_path / "a.npz", scores=ALL)
  assert card["values"] == card["floor"] and card["floor_num"] == 355
  assert card["values"]["frechet"] == pytest.approx(pixels_distance(held_out()), rel=1e-9)
  assert card["rounding"] == cards.GIVEN and card["images"]["num"] == 355
  assert card["score"] == "FD-pixels" and card["reference"]["num"] == 1_442
  assert card["options"] == {"subset_size": 80, "num_subsets": 4, "k": 3, "k_density": 5}
  assert {"versions", "device", "time"} <= card.keys()
  assert numbers.startswith(f"FD-pixels {card['values']['frechet']:.5g}; floor ")


def test_a_folder_of_the_same_images_is_the_same_set(tmp_path):
  folder = tmp_path / "pictures"
  folder.mkdir()
  for i, image in enumerate(held_out()):
    Image.fromarray(image[..., 0]).save(folder / f"{i:04d}.png")
  np.savez(tmp_path / "a.npz", arr_0=held_out())
  (a, _), (b, _) = (evaluate(tmp_path, tmp_path / name) for name in ("a.npz", "pictures"))
  assert a["images"]["digest"] == b["images"]["digest"] and a["values"] == b["values"]
  assert compare.incomparable(a, b) == []


@pytest.mark.parametrize("rule", ["round", "truncate"])
def test_samples_that_are_floats_are_rounded_by_the_rule(tmp_path, rule):
  levels = held_out().astype(np.float32) + 0.4  # rounded or cut off, it is what it was
  np.savez(tmp_path / "a.npz", samples=levels / 127.5 - 1)
  card, _ = evaluate(tmp_path, tmp_path / "a.npz", rounding=rule)
  assert card["rounding"] == rule
  assert card["values"]["frechet"] == pytest.approx(card["floor"]["frechet"], rel=1e-12)


def test_a_reference_that_was_written_gives_the_same_numbers_as_the_data(tmp_path):
  np.savez(tmp_path / "a.npz", arr_0=held_out()[:200])
  said = sample.make_reference(given(scores=ALL), tmp_path / "ref" / "digits.npz")
  assert "1,442 images, pixels" in said
  a, _ = evaluate(tmp_path, tmp_path / "a.npz", scores=ALL)
  file = str(tmp_path / "ref" / "digits.npz")
  b, _ = evaluate(tmp_path, tmp_path / "a.npz", scores=ALL, reference=file)
  for name, value in a["values"].items():
    assert b["values"][name] == pytest.approx(value, rel=1e-9, abs=1e-14), name
  assert b["reference"]["file"] == "digits.npz" and len(b["reference"]["sha256"]) == 64
  assert compare.incomparable(a, b) == []


def test_without_a_test_split_the_floor_is_that_of_every_tenth_training_image(tmp_path, caplog):
  train, label = sources.as_array(sources.digits())[0], np.zeros(1_442, np.int32)
  path = prepared_sets.write_set(tmp_path / "set", {"image": train, "label": label}, num_classes=1)
  c = configure(scores=("frechet",))
  c.data = dict(name="records", flip=False, records=dict(path=str(path)))
  np.savez(tmp_path / "a.npz", arr_0=held_out())
  with caplog.at_level(logging.INFO, "cmjax"):
    said = sample.evaluate_images(experiment.parse(c), tmp_path / "scores", tmp_path / "a.npz")
  card = cards.read(said.partition(": ")[0])
  flat = lambda x: frechet.moments(x.reshape(len(x), -1) / 255)
  share = np.arange(1_442) % 10 == 9
  floor = frechet.distance(flat(train[share]), flat(train[~share]))
  assert card["floor"]["frechet"] == pytest.approx(floor, rel=1e-9) and card["floor_num"] == 144
  assert card["floor_of"] == "every 10th training image, against the others"
  assert card["values"]["frechet"] == pytest.approx(pixels_distance(held_out()), rel=1e-9)
  assert card["reference"]["num"] == 1_442  # of all
  assert caplog.text.count("there is no test split (No prepared split 'test' in ") == 1


def test_images_are_compared_as_points_by_the_sliced_wasserstein_distance():
  c = configure()
  c.evals = dict(
    swd=dict(name="sliced_wasserstein", samplers=("one_step",), emas=("main",), every_steps=1,
             num_samples=200, batch_size=50)
  )  # fmt: skip
  e = experiment.parse(c)
  params = e.network.init(jax.random.key(0))
  found = dict(experiment.open_evaluators(e, MESH)["swd"]({"main": params}, jax.random.key(1)))
  spread = lambda split: sources.as_array(sources.digits(split=split), limit=200)[0]
  train, test = (spread(split).reshape(200, -1) / 127.5 - 1 for split in sources.SPLITS)
  assert found["floor"] == pytest.approx(wasserstein.sliced(test, train), rel=1e-5)
  assert found["one_step/main"] > 2 * found["floor"]


def test_a_card_says_how_the_reference_was_prepared(tmp_path):
  train, label = sources.as_array(sources.digits())[0], np.zeros(1_442, np.int32)
  path = prepared_sets.write_set(tmp_path / "set", {"image": train, "label": label}, num_classes=1)
  c = configure(scores=("frechet",), floor=False)
  c.data = dict(name="records", flip=False, records=dict(path=str(path)))
  reference = experiment.reference(experiment.parse(c), "fd", MESH).record
  _, manifest = manifests.read(path, "train")
  assert reference["prepared"]["shards_sha256"] == [shard.sha256 for shard in manifest.shards]
  assert reference["prepared"]["made"] == manifest.details.get("made")


def test_a_classifier_looks_at_images_by_its_file(tmp_path):
  weights = classifier.init(jax.random.key(0), (8, 8, 1), 10)
  made = classifier.Classifier(
    {k: np.asarray(a) for k, a in weights.items()}, (8, 8, 1), 2.0, 0.1, 0
  )
  classifier.save(tmp_path / "c.npz", made)
  np.savez(tmp_path / "a.npz", arr_0=held_out())
  options = dict(features="classifier", weights=str(tmp_path / "c.npz"))
  card, _ = evaluate(tmp_path, tmp_path / "a.npz", **options)
  assert card["values"]["frechet"] == pytest.approx(card["floor"]["frechet"], rel=1e-12)
  assert card["score"] == "FD-classifier" and len(card["detector"]["weights_sha256"]) == 64
  sample.make_reference(given(**options), tmp_path / "r.npz")
  with pytest.raises(ValueError, match="r.npz was made by another detector: accuracy is"):
    experiment.scorer(given(reference=str(tmp_path / "r.npz")), "fd", MESH)


def test_images_of_another_shape_are_refused(tmp_path):
  np.savez(tmp_path / "a.npz", arr_0=np.zeros((300, 9, 8, 1), np.uint8))
  with pytest.raises(ValueError, match=r"are \[9, 8, 1\], those of config.data \[8, 8, 1\]"):
    evaluate(tmp_path, tmp_path / "a.npz")


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, "it has nothing: one array must be named arr_0, images, samples"),
    ({"a": np.zeros(3)}, "it has a: one array must be named"),
    ({"arr_0": np.zeros(3), "images": np.zeros(3)}, "it has arr_0, images: one array must be"),
    ({"images": np.zeros((3, 4))}, r"images are float64 \[3, 4\], but must be uint8"),
    ({"images": np.zeros((3, 4, 4, 1), np.int32)}, "images are int32"),
    ({"images": np.full((3, 4, 4, 1), 99.0)}, "got up to 99. Save as uint8"),
    (
      {"images": np.zeros((3, 4, 4, 1)), "labels": np.zeros(2, int)},
      r"labels are int64 \[2\], but must be integers \[3\]",
    ),
    ({"images": np.array([{}])}, "is no .npz of images: Object arrays cannot be loaded"),
  ],
)
def test_files_that_hold_no_images_say_what_they_should(tmp_path, arrays, message):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    image_sets.read(tmp_path / "a.npz")


def test_there_must_be_images(tmp_path):
  with pytest.raises(ValueError, match="no folder and no .npz of images at"):
    image_sets.read(tmp_path / "none.npz")


# --- at the door ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("fd", "message"),
  [
    (
      {"features": "vgg"},
      "'vgg'. Choose from: classifier, dinov2, efficientnet_lite0, inception, pi",
    ),
    (
      {"features": "inception"},
      "'inception' need evals.fd.weights, the file of them. Nothing is do",
    ),
    ({"features": "classifier"}, "'classifier' need evals.fd.weights, the file of one"),
    ({"weights": "a.npz"}, "features 'pixels' have no weights"),
    ({"variant": "clean"}, "evals.fd.variant='clean': features 'pixels' have no variants"),
    ({"rounding": "floor"}, "'floor'. Choose from: round, truncate"),
    ({"scores": ("fid",)}, "must be one or more of: frechet, sfid, kernel"),
    ({"scores": ("kernel",), "subset_size": 101}, r"evals.fd .frechet. has 100 images, .*'kernel'"),
    (
      {"scores": ("kernel",), "subset_size": 400, "num_samples": 400},
      "355 images.* evals.fd.floor=False",
    ),
    ({"reference": "none.npz"}, "no reference statistics at none.npz"),
    ({"per_class": True}, "per_class=True needs a network with net.num_classes"),
    ({"best_of": 0}, "best_of=0 must be at least 1"),
    (
      {"num": 3},
      r"evals.fd .frechet. takes no num. It takes: emas, num_samples, batch_size, best_",
    ),
  ],
)
def test_what_an_evaluator_cannot_have_is_said_before_anything_is_computed(fd, message):
  config = configure(**fd)
  config.samplers = dict(one_step=dict(name="consistency"))
  with pytest.raises(ValueError, match=message):
    experiment.open_evaluators(experiment.parse(config), MESH)


def test_step_0_has_grids_and_no_scores_unless_asked_otherwise():
  config = tiny.config()
  due = lambda: [
    {step: experiment.due(evaluator, step) for step in (0, 3, 6, 12)}
    for evaluator in experiment.parse(config).evaluators.values()
  ]
  every = {0: True, 3: False, 6: True, 12: True}
  assert due() == [every, every | {0: False}]
  config.evals.grid.at_start, config.evals.swd.at_start = False, True
  assert due() == [every | {0: False}, every]


def test_points_are_not_rounded():
  with pytest.raises(ValueError, match="rounding='round', but the data are float32, not 8 bits"):
    experiment.scorer(given(data="points", rounding="round"), "fd", MESH)
  scorer, to_images = experiment.scorer(given(data="points"), "fd", MESH)
  x = np.array([[0.123, -4.0]], np.float32)
  assert scorer.record["rounding"] == "none" and to_images(x) is x


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.devices
def test_a_sample_is_a_function_of_its_number_on_any_devices_in_any_batch():
  tiny_one = tiny.experiment_of()
  params = jax.tree.map(lambda a: a + 0.1, tiny_one.network.init(jax.random.key(0)))
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  draw = lambda mesh, numbers: experiment.compiled_sampler(tiny_one, "two_steps", mesh)(
    params, jax.random.key(5), np.asarray(numbers)
  )
  numbers, whole = draw(one, range(12))
  np.testing.assert_array_equal(numbers, range(12))
  # Five samples on eight devices: three are drawn in vain, and none of them comes back.
  numbers, some = draw(sharding.make_mesh(), [9, 2, 3, 11, 0])
  np.testing.assert_array_equal(numbers, [9, 2, 3, 11, 0])
  np.testing.assert_allclose(some, whole[[9, 2, 3, 11, 0]], rtol=1e-5, atol=1e-6)
  assert len(np.unique(whole[:, 0])) == 12


@pytest.mark.devices
def test_a_search_scores_what_the_evaluator_would_on_any_devices_in_any_batch():
  c = configure("points", samplers=("two_steps",), num_samples=100, batch_size=50)
  key, parsed = jax.random.key(3), lambda: experiment.parse(c)
  params = jax.tree.map(lambda a: a + 0.1, parsed().network.init(jax.random.key(0)))
  expected = []
  for t in (1.1, 0.6):
    c.samplers.two_steps.mid_times = (t,)
    expected.append(experiment.frechet_scores(parsed(), MESH)[1](params, key)["two_steps"])
  assert abs(expected[0] - expected[1]) > 1e-3
  for mesh, batch_size in ((MESH, 50), (sharding.make_mesh(2, 4), 32), (MESH, 500)):
    c.evals.fd.batch_size = batch_size
    judge = experiment.search_score(parsed(), "two_steps", mesh, params, key, 100)
    assert (judge.num_steps, judge.num_samples) == (2, 100)
    assert [judge.score((1.1,)), judge.score((0.6,))] == pytest.approx(expected, rel=1e-5)
  # The gain is from other noise than the scores, the same for both.
  gain, error = judge.gain((1.1,), (0.6,))
  assert 1e-3 < abs(gain - (expected[1] - expected[0])) < 5 * error
  assert judge.gain((0.6,), (1.1,)) == pytest.approx((-gain, error))
  c.evals.fd.batch_size = 0
  with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
    experiment.search_score(parsed(), "two_steps", MESH, params, key, 100)


@pytest.mark.parametrize(
  ("dim", "evaluator", "expected"),
  [(64, 50_000, 2_000), (2048, 50_000, 5_120), (2048, 3_000, 3_000)],
)
def test_a_search_takes_as_many_samples_as_its_features_need(monkeypatch, dim, evaluator, expected):
  reference = frechet.Moments(9, np.zeros(dim), np.eye(dim))
  judge = types.SimpleNamespace(
    detector=types.SimpleNamespace(dim=dim),
    reference=lambda: types.SimpleNamespace(features=types.SimpleNamespace(moments=reference)),
  )
  monkeypatch.setattr(evaluation, "scorer", lambda *args: (judge, None))
  exp = given("points", samplers=("two_steps",), num_samples=evaluator)
  find = lambda number: (
    evaluation.search_score(exp, "two_steps", MESH, {}, jax.random.key(0), number).num_samples
  )
  assert (find(None), find(77)) == (expected, 77)


def test_the_error_of_a_gain_is_its_spread_over_other_noise():
  """Two sets of points that share most of their noise: what both have counts for neither."""
  rng, dim, size = np.random.default_rng(0), 4, 60
  reference = frechet.moments(rng.standard_normal((100_000, dim)))
  gains, errors, alone = [], [], []
  for _ in range(100):
    noise, own = rng.standard_normal((2, 10, size, dim))
    near = [frechet.moments(x) for x in 1.05 * noise]
    far = [frechet.moments(x) for x in 1.1 * noise + 0.05 * own]
    gain, error = evaluation._gain(near, far, reference)
    gains.append(gain)
    errors.append(error)
    alone.append([frechet.distance(frechet.merge_all(each), reference) for each in (near, far)])
  assert 0.8 < np.mean(errors) / np.std(gains) < 1.25
  whole = [frechet.distance(frechet.merge_all(parts), reference) for parts in (near, far)]
  assert gains[-1] == pytest.approx(whole[1] - whole[0])
  assert evaluation._gain(near, near, reference) == (0, 0)
  # Of other noise each, the two would differ by far more.
  apart = np.hypot(*(np.std(each) for each in zip(*alone, strict=True)))
  assert np.std(gains) < 0.6 * apart


# --- what a run leaves ----------------------------------------------------------------------------


def test_a_card_of_a_run_knows_its_step_and_what_makes_the_run_what_it_is(tmp_path):
  card = json.loads(json.dumps(dict.fromkeys(("values", "detector", "reference", "images"), {})))
  card |= {"options": {}, "score": "FID", "rounding": "round", "images": {"num": 3}}

  def written(**values):
    record = tiny.experiment_of(**values).record
    path = score_files.write_card(record, epath.Path(tmp_path), 12, "fd_one_step_main", card)
    assert path == tmp_path / "cards" / "fd_one_step_main_step12.json"
    return cards.read(path)

  first = written()
  assert first["step"] == 12 and first["versions"]["jax"] and "cpu" in first["device"]
  same = written(total_steps=99, log_every_steps=7)  # what may differ between two sittings
  assert same["config_sha256"] == first["config_sha256"]
  assert written(**{"optim.lr": 3e-3})["config_sha256"] != first["config_sha256"]


def test_each_value_is_a_row_of_the_report_and_has_a_chart_with_its_floor():
  scores = {"fd/floor": 0.5, "fd/floor/recall": 0.9}
  scores |= {"fd/one_step/main": 2.0, "fd/one_step/main/recall": 0.4}
  rows = score_files.rows(given(data="points"), scores)
  assert [(r["score"], r["value"], r["floor"]) for r in rows] == [
    ("fd", 2.0, 0.5), ("fd/recall", 0.4, 0.9),
  ]  # fmt: skip
  series = (np.array([0]), np.array([1.0]))
  made = {g.title: set(g.lines) for g in charts.groups(dict.fromkeys(scores, series))}
  assert made == {"fd": {"floor", "one_step/main"}, "fd/recall": {"floor", "one_step/main"}}
