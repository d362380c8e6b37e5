"""A run is what it was: config, data, teacher, JAX; and who reads it believes it."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import digests
from cmjax.data import records, sources
from cmjax.experiment import Evaluator
from cmjax.metrics import cards, compare
from cmjax.program import identity, sample, searched_times, stored_runs
from cmjax.run import checkpoint
from helpers import prepared_sets, tiny

pytestmark = pytest.mark.usefixtures("shared_programs")
SIGMA_DATA = 0.7
RNG = np.random.default_rng(0)
FD = dict(
  name="frechet", features="pixels", samplers=("two_steps",), emas=("main",), every_steps=9,
  num_samples=32, batch_size=32,
)  # fmt: skip
SHORT = {"total_steps": 2, "checkpoint.every_steps": 1, "evals": {}, "sigma_data": SIGMA_DATA}


def config(**values):
  """A run of two steps, with a value of sigma_data of its own."""
  made = tiny.config().unlock()
  made.update_from_flattened_dict(SHORT | values)
  return made


def parsed(**values):
  return experiment.parse(config(**values))


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  tiny.train(config(), workdir)
  return workdir


@pytest.fixture(name="copy")
def _copy(run, tmp_path):
  return shutil.copytree(run, tmp_path / "copy")


def stored_meta(workdir):
  stored = checkpoint.Checkpoints(workdir, read_only=True)
  with contextlib.closing(stored):
    return stored.meta(stored.steps()[0])


def to_sample(given, workdir):
  return sample.sample(given, workdir, num_samples=2, name="one_step", seed=0)


def to_search(given, workdir):
  return sample.search_times(given, workdir, name=None, num_samples=8, num_probes=5, seed=0)


MODES = {"sample": to_sample, "evaluate": sample.evaluate, "search": to_search}


# --- what samples and scores a run is the run -----------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
  ("key", "value", "told"),
  [
    ("sigma_data", 0.5, "sigma_data (0.7 in the run, 0.5 given)"),
    ("loss.P_mean", -0.4, "loss.P_mean (-1.0 in the run, -0.4 given)"),
    ("data.toy2d.distribution", "moons", "distribution (checkerboard in the run, moons given)"),
    ("net.width", 24, "net.width (16 in the run, 24 given)"),
    ("net.num_classes", 3, "net.num_classes (not set in the run, 3 given)"),
    ("ema.short.half_life_images", 7, "ema.short.half_life_images (50 in the run, 7 given)"),
  ],
)
def test_another_config_than_the_runs_is_refused_in_one_line(run, mode, key, value, told):
  with pytest.raises(ValueError) as caught:
    MODES[mode](parsed(**{key: value}), run)
  message = str(caught.value)
  assert told in message and "give --workdir alone" in message and "\n" not in message


def test_many_differences_are_counted_and_a_part_handed_in_is_one(run):
  values = {"loss.P_mean": 0.0, "loss.P_std": 1.0, "loss.c": 0.2, "data.toy2d.num_points": 99}
  given = parsed(**values)
  given = given._replace(run=given.run._replace(sigma_data=0.5))
  with pytest.raises(ValueError, match=r": data.toy2d.num_points .* and 1 more\. Leave"):
    to_sample(given, run)
  handed = parsed()._replace(source=lambda split: None)
  with pytest.raises(ValueError, match=r"data.name \(toy2d in the run, python:"):
    sample.evaluate(handed, run)


def test_samplers_evaluators_mesh_and_seed_may_be_others(copy):
  values = {"mesh": {"data": 1, "fsdp": -1}, "seed": 5, "log_every_steps": 7, "total_steps": 9}
  given = parsed(
    **values, evals={"fd": FD}, samplers={"two_steps": {"name": "ddim", "num_steps": 2}}
  )
  assert "fd/two_steps/main: " in sample.evaluate(given, copy)
  card = cards.read(copy / "cards" / "fd_two_steps_main_step2.json")
  assert card["images"]["seed"] == 5 and card["sampler"]["name"] == "ddim"
  data = stored_meta(copy)["identity"]["data"]
  assert card["trained"] == {
    "sigma_data": SIGMA_DATA, "method": "sct", "sigma_min": None, "network": "mlp",
    "num_classes": 0, "data": {"name": "toy2d", "digest": data["digest"]},
  }  # fmt: skip


def test_how_a_run_was_trained_is_told_and_stays_on_its_record(copy, caplog):
  given = parsed(batch_size=8, evals={"fd": FD}, **{"optim.lr": 0.5, "teacher.ema": "short"})
  with caplog.at_level("INFO", "cmjax"):
    sample.evaluate(given, copy)
  assert "batch_size (16 in the run, 8 given), optim.lr (0.01 in the run, 0.5 given)" in caplog.text
  assert "teacher.ema (main in the run, short given). Nothing here depends on" in caplog.text
  card = cards.read(copy / "cards" / "fd_two_steps_main_step2.json")
  assert card["config_sha256"] == identity.digest(parsed().record)
  assert "0.01" in (copy / "report.html").read_text().split("optim.lr")[-1][:60]


def test_a_config_json_that_was_changed_does_not_become_the_runs(copy, caplog):
  path = copy / "config.json"
  record = json.loads(path.read_text())
  assert stored_runs.read_trained_record(copy) == record
  assert "config.json in" not in caplog.text
  record["sigma_data"], record["evals"] = 0.5, {"fd": FD}
  path.write_text(json.dumps(record))
  read = stored_runs.read_trained_record(copy)
  assert read["sigma_data"] == SIGMA_DATA and read["evals"]["fd"]["name"] == "frechet"
  said = "differs from the config of the newest checkpoint "
  assert f"{said}(sigma_data: 0.5, there 0.7): the checkpoint's values are taken." in caplog.text
  assert f"{said}(evals.fd.batch_size: 32, there not set" in caplog.text
  assert "config.json's values are taken." in caplog.text
  for text in ("{", "[]", "[" * 10**5, "\udcff"):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="config.json is damaged .*: give --config") as caught:
      stored_runs.read_record(copy)
    assert "\n" not in str(caught.value)


# --- what no config shows -------------------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (40, 4, 4, 1), np.uint8)
LABELS = np.arange(40) % 4


def changed(images=IMAGES, labels=LABELS, num_classes=4):
  return sources.ArraySource(images, labels, num_classes)


def one_pixel():
  images = IMAGES.copy()
  images[17, 2, 1] ^= 1
  return images


OTHERS = {
  "one pixel": lambda: changed(one_pixel()),
  "the order": lambda: changed(IMAGES[::-1]),
  "the labels": lambda: changed(labels=LABELS[::-1]),
  "the number of classes": lambda: changed(num_classes=5),
  "one image less": lambda: changed(IMAGES[1:], LABELS[1:]),
  "the shape": lambda: changed(IMAGES.reshape(40, 2, 8, 1)),
  "the type": lambda: changed(IMAGES.astype(np.float32)),
  "no labels": lambda: sources.ArraySource(IMAGES),
}


@pytest.mark.parametrize("what", OTHERS)
def test_data_are_known_by_their_content(what):
  whole = identity.of_data(changed())
  assert whole == identity.of_data(changed(IMAGES.copy())) and whole["looked_at"] == 40
  assert identity.of_data(OTHERS[what]())["digest"] != whole["digest"]


class Slow(sources.Source):
  """Data that are read one by one, and count."""

  shape, num_classes, reads = (2,), 0, 0

  def __len__(self):
    return 10**6

  def __getitem__(self, i):
    type(self).reads += 1
    return {"image": np.full(2, i, np.float32)}


def test_of_large_data_some_elements_count_and_the_identity_says_how_many():
  found = identity.of_data(Slow())
  assert found["looked_at"] == identity.MOST_ELEMENTS and Slow.reads <= identity.MOST_ELEMENTS + 1
  assert found["num_examples"] == 10**6


def test_a_prepared_set_is_known_by_its_shards(tmp_path):
  digest = {}
  for name, images in (("a", IMAGES), ("b", IMAGES), ("c", one_pixel())):
    arrays = {"image": images, "label": LABELS.astype(np.int32)}
    path = prepared_sets.write_set(tmp_path / name, arrays, num_classes=4)
    data = records.records(path)
    data.take = None  # not one record is read
    digest[name] = identity.of_data(data)["digest"]
  assert digest["a"] == digest["b"] != digest["c"]


SETTINGS = {
  "jax_enable_x64": True,
  "jax_default_prng_impl": "rbg",
  "jax_threefry_partitionable": False,
  "jax_default_matmul_precision": "highest",
  "jax_random_seed_offset": 3,
  "jax_disable_most_optimizations": None,  # the opposite of now
  "jax_numpy_dtype_promotion": "strict",
}


@contextlib.contextmanager
def setting(name, value):
  before = jax.config.values[name]
  jax.config.update(name, not before if value is None else value)
  try:
    yield
  finally:
    jax.config.update(name, getattr(before, "value", before))


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_of_jax_are_refused(run, name):
  given, meta = parsed(), stored_meta(run)
  known = lambda: identity.of(given, given.source("train"))
  record = experiment.stored_record(given)
  assert identity.check_same_run(record, meta, identity=known()) == {}
  with setting(name, SETTINGS[name]):
    with pytest.raises(ValueError, match=f"{name}: .* in the snapshot, .* now\nTake"):
      identity.check_same_run(record, meta, identity=known())
    found = identity.check_same_run(record, meta, identity=known(), allow_change=True)
  assert list(found) == [name]


def test_training_asks_and_goes_on_only_when_told_with_a_line_on_record(copy, monkeypatch, caplog):
  more = config(total_steps=3)
  other = identity.settings() | {"jax_threefry_partitionable": False}
  monkeypatch.setattr(identity, "settings", lambda: other)
  with pytest.raises(ValueError, match="jax_threefry_partitionable: True in the checkp.*False"):
    tiny.train(more, copy)
  tiny.train(more, copy, allow_config_change=True)
  (line,) = (copy / identity.CHANGES).read_text().splitlines()
  told = {"jax_threefry_partitionable": {"old": True, "new": False}}
  assert json.loads(line) == {"step": 2, "changes": told}
  assert "changed config: jax_threefry_partitionable: True in the checkpoint" in caplog.text


POINTS = {"now": RNG.normal(0, SIGMA_DATA, (64, 2)).astype(np.float32)}


def own_points(split):
  return sources.ArraySource(POINTS["now"])


def test_data_that_were_replaced_are_refused_where_the_run_goes_on_and_where_it_is_scored(
  tmp_path, monkeypatch
):
  given = parsed(evals={"fd": FD})._replace(source=own_points)
  tiny.program.train(given, tmp_path)
  scores = (tmp_path / "scores.json").read_text()
  assert "fd/two_steps/main" in sample.evaluate(given, tmp_path)
  monkeypatch.setitem(POINTS, "now", POINTS["now"][::-1])
  with pytest.raises(ValueError, match=r"data .content.: \w{16} in the checkpoint, \w{16} now"):
    tiny.program.train(given, tmp_path)
  told = "are not those that the run in .* was trained on: 64 examples with digest"
  for mode in (sample.evaluate, to_search):
    with pytest.raises(ValueError, match=told):
      mode(given, tmp_path)
  assert (tmp_path / "scores.json").read_text() == scores
  assert to_sample(given, tmp_path)[0].is_file()  # it needs no data


def test_data_may_be_at_another_place(caplog):
  record = lambda path, split: {"data": {"name": "npz", "npz": {"path": path, "which": split}}}
  identity.check_trained(record("there", 1), record("here", 1), "run")
  with pytest.raises(ValueError, match=r"data.npz.which \(1 in the run, 2 given\)"):
    identity.check_trained(record("there", 2), record("here", 1), "run")


def student(teacher, **values):
  where = {"workdir": str(teacher), "ema": "main"}
  made = config(**values)
  made.loss = dict(made.loss) | {"name": "scd"}
  made.teacher = where
  return made


def test_a_teacher_that_was_trained_on_or_anew_is_refused(copy, tmp_path):
  tiny.train(student(copy), tmp_path / "student")
  known = stored_meta(tmp_path / "student")["identity"]["teacher"]
  assert known == stored_runs.weights_of(copy, 2) and len(known["digest"]) == 64
  again = student(copy, total_steps=3)
  tiny.train(config(total_steps=3), copy)
  with pytest.raises(ValueError, match=r"teacher .step of its weights.: 2 in the checkpo.*, 3 now"):
    tiny.train(again, tmp_path / "student")
  shutil.rmtree(copy)
  tiny.train(config(seed=1), copy)  # as many steps, other weights
  with pytest.raises(
    ValueError, match=r"teacher .content of its weights.: \w{16} in the"
  ) as caught:
    tiny.train(again, tmp_path / "student")
  assert "step of its weights" not in str(caught.value)


def test_a_teacher_that_was_handed_in_is_known_by_its_weights():
  given = parsed()
  params = given.network.init(jax.random.key(0))
  other = jax.tree.map(lambda a: a + 1e-3, params)
  mesh = experiment.make_mesh(given.run)
  one, two = (
    stored_runs.load_teacher(given._replace(teacher=(given.network, p)), mesh)
    for p in (params, other)
  )
  assert one.weights["digest"] != two.weights["digest"] and len(one.weights["digest"]) == 64


def test_files_of_loss_and_evaluators_are_known_by_their_content(tmp_path):
  path = tmp_path / "weights.npz"
  path.write_bytes(b"a" * 3_000_000)
  record = {"loss": {"distance": {"weights": str(path)}}, "evals": {"fd": {"reference": "train"}}}
  first = identity._files(record)
  assert list(first) == ["loss.distance.weights"]
  path.write_bytes(b"b" * 3_000_000)
  assert identity._files(record) != first
  named = identity._named({"files": first})
  assert list(named) == ["loss.distance.weights (content of the file)"]


def test_a_checkpoint_without_an_identity_goes_on_and_that_is_said(tmp_path, monkeypatch, caplog):
  with monkeypatch.context() as patch:
    patch.setattr(identity, "of", lambda *args: {})
    tiny.train(config(), tmp_path)
  assert not stored_meta(tmp_path)["identity"]
  with caplog.at_level("INFO", "cmjax"):
    tiny.train(config(total_steps=3), tmp_path)
  assert "step 2 does not say the content of its data and teacher" in caplog.text
  assert "not known, so not compared" in caplog.text
  assert not (tmp_path / identity.CHANGES).exists()
  assert stored_meta(tmp_path)["identity"]["data"]["num_examples"] == 512
  given = identity.with_checked_data(parsed(), None, tmp_path)
  assert len(given.source("train")) == 512


def test_other_versions_are_recorded_and_not_refused(copy, monkeypatch, caplog):
  now = checkpoint.versions()
  monkeypatch.setattr(checkpoint, "versions", lambda: now | {"jax": "99.0"})
  tiny.train(config(total_steps=3), copy)
  (line,) = (copy / identity.CHANGES).read_text().splitlines()
  told = {"version of jax": {"old": now["jax"], "new": "99.0"}}
  assert json.loads(line)["changes"] == told


# --- small files that are believed ----------------------------------------------------------------


@pytest.fixture(name="searched")
def _searched(copy):
  """A run with searched times, as mode search writes them."""
  weights = stored_runs.weights_of(copy, 2)
  found = {"mid_times": (0.7,), "score": 1.0, "step": 2, "weights": weights}
  searched_times.write(copy, {"two_steps": found})
  return copy, weights


def times_of(exp):
  return exp.samplers["two_steps"].times[1:].tolist()


def test_times_that_were_searched_are_used_for_their_weights_alone(searched, caplog):
  workdir, weights = searched
  use = lambda known: times_of(searched_times.use(parsed(), workdir, known))
  assert use(weights) == pytest.approx([0.7])
  assert not [r for r in caplog.records if r.levelname == "WARNING"]
  for other in (weights | {"step": 3}, weights | {"digest": "00"}):
    caplog.clear()
    assert use(other) == pytest.approx([1.1])
    assert "searched for other weights (step 2; now step" in caplog.text


def change_digit(text):
  return text.replace("0.7", "0.8", 1)


@pytest.mark.parametrize(
  "change",
  [
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[]",
    lambda text: "{}",
    lambda text: "[" * 10**5,
    change_digit,
    lambda text: json.dumps({"two_steps": {"mid_times": []}}),
    lambda text: json.dumps({"two_steps": {"mid_times": ["0.7"]}}),
    lambda text: json.dumps({"two_steps": {"mid_times": [float("nan")]}}),
    lambda text: json.dumps({"two_steps": {"mid_times": [-0.7]}}),
    lambda text: json.dumps({"two_steps": {"mid_times": [1.57]}}),
    lambda text: json.dumps({"two_steps": {"mid_times": [0.7, 0.7]}}),
    lambda text: json.dumps({"two_steps": [0.7]}),
    lambda text: text.replace('"step": 2', '"step": 3'),
  ],
)
def test_damaged_times_are_refused_in_one_line(searched, change):
  workdir, weights = searched
  path = workdir / searched_times.FILE
  path.write_text(change(path.read_text()))
  with pytest.raises(
    ValueError, match="sampler_times.json.* is damaged .*: search again"
  ) as caught:
    searched_times.use(parsed(), workdir, weights)
  assert "\n" not in str(caught.value)
  searched_times.write(workdir, {"two_steps": {"mid_times": [0.6], "weights": weights}})
  assert times_of(searched_times.use(parsed(), workdir, weights)) == pytest.approx([0.6])


def test_times_without_a_digest_and_of_another_number_are_told(searched, caplog):
  workdir, weights = searched
  path = workdir / searched_times.FILE
  path.write_text(json.dumps({"two_steps": {"mid_times": [0.7], "step": 2}}))
  assert times_of(searched_times.use(parsed(), workdir, weights)) == pytest.approx([0.7])
  assert "does not say for which weights its times were searched: not known" in caplog.text
  path.write_text(json.dumps({"two_steps": {"mid_times": [0.7, 0.3], "step": 2}}))
  assert times_of(searched_times.use(parsed(), workdir, weights)) == pytest.approx([1.1])
  assert "has 2 times for a sampler that has 1 now: not used" in caplog.text


@pytest.fixture(name="scored", scope="module")
def _scored(tmp_path_factory):
  """A finished run whose evaluator counts its calls, and how to call it again."""
  folder, calls = tmp_path_factory.mktemp("scored"), []

  def evaluate(averages, key):
    calls.append(1)
    yield "answer", 42.125

  def train(workdir, **values):
    given = parsed(**values)
    one = Evaluator(lambda setting: evaluate, (), ("main",), 9)
    return tiny.program.train(given._replace(evaluators={"own": one}), workdir)

  train(folder / "run")
  return folder / "run", train, calls


CHANGED_FILES = {
  "a digit": lambda text: text.replace("42.125", "12.125"),
  "the step": lambda text: text.replace('"step": 2', '"step": 3'),
  "the label": lambda text: text.replace("own/answer", "own/answers"),
  "half of it": lambda text: text[: len(text) // 2],
  "all of it": lambda text: "",
  "the digest": lambda text: text.replace('"sha256"', '"sha257"'),
  "other contents": lambda text: json.dumps(digests.sealed({"evaluators": {}})),
}


@pytest.mark.parametrize("what", CHANGED_FILES)
def test_a_score_that_was_changed_is_made_again(scored, tmp_path, what):
  run, train, calls = scored
  workdir = shutil.copytree(run, tmp_path / "run")
  calls.clear()
  assert train(workdir) == {"own/answer": 42.125} and not calls
  path = workdir / "evaluations.json"
  assert "42.125" in path.read_text()
  path.write_text(CHANGED_FILES[what](path.read_text()))
  assert train(workdir) == {"own/answer": 42.125} and calls == [1]
  assert train(workdir) == {"own/answer": 42.125} and calls == [1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.json"])
def test_what_is_for_people_is_not_believed(scored, tmp_path, name):
  run, train, _ = scored
  workdir = shutil.copytree(run, tmp_path / "run")
  path = workdir / name
  assert "42.125" in path.read_text()
  path.write_text(path.read_text().replace("42.125", "12.125"))
  assert train(workdir) == {"own/answer": 42.125}
  assert json.loads((workdir / "scores.json").read_text()) == {"own/answer": 42.125}


def test_scores_that_another_guide_led_are_made_again(scored, tmp_path):
  run, train, calls = scored
  guide = shutil.copytree(run, tmp_path / "guide")
  led = {"samplers.led": dict(name="consistency", guidance=dict(
    name="autoguidance", workdir=str(guide), scale=1.5))}  # fmt: skip
  calls.clear()
  for times in (1, 1):
    assert train(tmp_path / "led", **led) == {"own/answer": 42.125} and len(calls) == times
  train(guide, total_steps=4)  # goes on, and leads with other weights from now on
  calls.clear()
  train(tmp_path / "led", **led)
  assert calls == [1]


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [2**32, -1, 2**63, 2**40 + 7, 1.5, True, "0", None])
def test_a_seed_that_is_another_seed_is_refused(run, seed):
  record = config().to_dict() | {"seed": seed}
  told = "must be .*at least 0.* A larger seed would be taken for a smaller one"
  with pytest.raises(ValueError, match=f"^seed=.* {told}"):
    experiment.parse(record)
  if type(seed) is not int:
    return
  with pytest.raises(ValueError, match=f"^--seed=.* {told}"):
    sample.sample(parsed(), run, num_samples=2, name="one_step", seed=seed)
  with pytest.raises(ValueError, match=f"^--seed=.* {told}"):
    sample.search_times(parsed(), run, name=None, num_samples=8, num_probes=5, seed=seed)


def test_the_largest_seed_is_one():
  given = parsed(seed=2**32 - 1)
  keys = [jax.random.key_data(jax.random.key(s)).tolist() for s in (given.run.seed, 0)]
  assert keys[0] != keys[1]


# --- cards ----------------------------------------------------------------------------------------


def test_cards_of_two_scales_or_data_cannot_be_compared():
  card = {"values": {"frechet": 1.0}, "score": "FD", "detector": {}, "reference": {},
          "images": {"num": 8}, "rounding": "none", "options": {}}  # fmt: skip
  facts = lambda record, digest: identity.facts(record, {"data": {"digest": digest}})
  record = parsed().record
  ours = card | {"trained": facts(record, "aa")}
  reasons = lambda other: compare.incomparable(ours, card | other)
  assert reasons({}) == [] == reasons({"trained": ours["trained"]})
  other = {"trained": facts(parsed(sigma_data=0.5).record, "aa")}
  assert reasons(other) == ["trained.sigma_data: 0.7 in A, 0.5 in B"]
  assert "They cannot be compared:\n  trained.sigma_data" in compare.table(ours, card | other)
  assert reasons({"trained": facts(record, "bb")}) == ["trained.data.digest: aa in A, bb in B"]
  named = record | {"data": {"name": "npz"}}
  assert reasons({"trained": identity.facts(named, None)}) == [
    "trained.data.name: toy2d in A, npz in B"
  ]
  net = record | {"net": {"name": "mlp", "num_classes": 4}}
  assert reasons({"trained": facts(net, "aa")}) == ["trained.num_classes: 0 in A, 4 in B"]
  loss = record | {"loss": {"name": "ect", "sigma_min": 0.002}}
  assert reasons({"trained": facts(loss, "aa")}) == []
  assert "trained.method: sct in A, ect in B" in compare.differences(
    ours, card | {"trained": facts(loss, "aa")}
  )
