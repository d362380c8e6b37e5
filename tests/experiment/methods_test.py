"""Every method from a config: it trains, is sampled, and what does not fit is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.losses import lpips
from cmjax.program import sample, stored_runs, train
from helpers import methods_table, tiny
from helpers.losses import LOSSES, SCM, configure

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module", name="teacher")
def _teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher")
  config = tiny.config().unlock()
  config.loss = dict(name="diffusion", P_mean=-1.0, P_std=1.2, weighting="learned")
  config.samplers = dict(one_step=dict(name="heun", num_steps=3))
  config.evals = {}
  train.train(experiment.parse(config), folder)
  return folder


def method(name, teacher, **values):
  """The tiny config with that method's loss, started from the teacher."""
  config = configure(name, teacher)
  config.init_from.workdir = str(teacher)
  if config.net.get("segment"):
    config.samplers = dict(one_step=dict(name="segments"))
  config.evals = {k: v for k, v in config.evals.items() if k == "swd"}
  for path, value in values.items():
    config.update_from_flattened_dict({path: value})
  return config


# What these are made of trains in the others' runs, or in a test of its own below.
SLOW = {
  "cd",
  "scd",
  "ct",
  "ict",
  "dscm",
  "dscd",
  "central",
  "semi_continuous",
  "cd_continuous",
  "ct_continuous",
  "scd_vsd",
}
NAMES = [
  pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
  for name in LOSSES
  if not configure(name).net.get("num_classes")  # the points have no labels
]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_from_its_config_and_is_scored(name, teacher, tmp_path):
  config = method(name, teacher)
  scores = train.train(experiment.parse(config), tmp_path)
  assert np.isfinite(scores["swd/one_step/main"])
  state = stored_runs.load_state(tmp_path, sharding.make_mesh()).state
  before = stored_runs.load_network(teacher, sharding.make_mesh()).averages["main"]
  assert np.abs(state.params["net"]["fc_out"]["kernel"] - before["fc_out"]["kernel"]).max() > 1e-4
  records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert all(np.isfinite(list(record.values())).all() for record in records)


def test_the_target_of_ct_lags_behind_and_is_in_the_checkpoint(teacher, tmp_path):
  train.train(experiment.parse(method("ct", teacher)), tmp_path)
  state = stored_runs.load_state(tmp_path, sharding.make_mesh()).state
  assert set(state.ema) == {"main", "short", "target"}
  moved = np.abs(state.params["net"]["fc_out"]["kernel"] - state.ema["target"]["fc_out"]["kernel"])
  assert moved.max() > 1e-5


def test_the_fake_score_starts_as_the_teacher_and_has_its_own_optimizer(teacher, tmp_path):
  config = method("scd_vsd", teacher, **{"optim.lr": 0.0})
  train.train(experiment.parse(config), tmp_path)
  state = stored_runs.load_state(tmp_path, sharding.make_mesh()).state
  start = stored_runs.load_network(teacher, sharding.make_mesh()).averages["main"]["fc_out"][
    "kernel"
  ]
  # The student's rate is 0: only the fake moves, by at most 12 steps of Adam at 1e-3.
  np.testing.assert_array_equal(state.params["net"]["fc_out"]["kernel"], start)
  moved = np.abs(state.params["fake"]["fc_out"]["kernel"] - start).max()
  assert 1e-4 < moved < 12.5e-3


def test_a_student_with_a_new_input_starts_as_its_teacher(teacher):
  given, mesh = experiment.parse(method("scd_multistep", teacher)), sharding.make_mesh()
  params = stored_runs.first_weights(given, jax.random.key(0), mesh)
  source, averages, _ = stored_runs.load_network(teacher, mesh)
  x, t = jax.random.normal(jax.random.key(1), (8, 2)), jnp.full(8, 0.7)
  F = given.network.apply(params, x, t, {"segment": jnp.full(8, 0.3)}, None)
  np.testing.assert_array_equal(F, source.network.apply(averages["main"], x, t, {}, None))


def test_searched_times_are_written_beside_the_run_and_used_by_default(teacher, tmp_path):
  config = method("dscm", teacher)
  config.evals.fd = dict(
    name="frechet", features="pixels", samplers=("two_steps",), emas=("main",), every_steps=99,
    num_samples=64, batch_size=64,
  )  # fmt: skip
  train.train(experiment.parse(config), tmp_path)
  before = sample.evaluate(experiment.parse(config), tmp_path)
  text = sample.search_times(
    experiment.parse(config), tmp_path, name="two_steps", num_samples=64, num_probes=5, seed=0
  )
  found = json.loads((tmp_path / "sampler_times.json").read_text())["two_steps"]
  assert len(found["probes"]) == 5 and found["step"] == 12
  assert found["score"] == min(probe["score"] for probe in found["probes"])
  assert f"{found['mid_times'][0]:.4f}" in text
  after = sample.evaluate(experiment.parse(config), tmp_path)
  line = lambda text: next(x for x in text.splitlines() if x.startswith("fd/two_steps"))
  assert line(before) != line(after)
  config.samplers.two_steps.searched = False
  assert line(sample.evaluate(experiment.parse(config), tmp_path)) == line(before)


@pytest.mark.parametrize(
  ("name", "values", "message"),
  [
    ("ct", {"loss.curriculum.total_steps": 13}, "total_steps=13 is longer than the training of"),
    ("ect", {"loss.pairs.num_stages": 5}, "5 stages of 3 steps, longer than .* total_steps=12"),
    ("ict", {"loss.curriculum.total_steps": 2}, "takes 4 stages, more than total_steps=2"),
    ("ct", {"loss.distance.name": "lpips"}, "needs loss.distance.path, an .npz with its weights"),
    ("ct", {"loss.distance.name": "l3"}, "'l3'. Choose from: l1, l2, lpips, pseudo_huber, squ"),
    ("ct", {"loss.pairs.name": "even"}, "'even'. Choose from: ect, lognormal, uniform"),
    ("ct", {"loss.curriculum.name": "linear"}, "'linear'. Choose from: doubling, fixed, square"),
    ("ct", {"loss.target.name": "ema"}, "'ema'. Choose from: constant, current, curriculum"),
    ("ct", {"loss.weight": "snr2"}, "Unknown weight 'snr2'. Choose from: uniform, inverse_gap"),
    ("cd", {"loss.solver": "rk4"}, "Unknown solver 'rk4'. Choose from: euler, heun"),
    ("cd", {"teacher.workdir": ""}, "loss.name='cd' distils a teacher: set teacher.workdir"),
    ("dscm", {"loss.tangent.name": "forward"}, "'forward'. Choose from: central, discrete, exact"),
    ("ct_continuous", {"loss.distance.name": "l1"}, "distance='l1' has no second derivative"),
    ("cd_continuous", {"loss.name": "ct_continuous"}, "needs a teacher's ODE: the data's veloc"),
    ("scd_vsd", {"loss.name": "sct"}, "loss.vsd compares with a teacher: loss.name must be 'scd'"),
    ("scd_multistep", {"net.segment": False}, "told its segment: net.segment=True"),
    ("dscm", {"samplers.one_step.name": "segments"}, "is for multistep sCD: loss.num_segments"),
  ],
)
def test_what_does_not_fit_is_refused_before_training(name, values, message, teacher, tmp_path):
  config = method(name, teacher)
  config.update_from_flattened_dict(values)
  with pytest.raises(ValueError, match=message):
    train.train(experiment.parse(config), tmp_path)
  assert not (tmp_path / "checkpoints").exists()


def labelled_digits():
  """A diffusion config with labels, never dropped, and the guided student that learns from it."""
  digits = tiny.config().unlock()
  digits.data = dict(name="digits", flip=False)
  digits.net = dict(
    name="ddpmpp", resolution=8, in_channels=1, channels=4, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), dropout=0.0, num_classes=10, augment_dim=0, dtype="float32",
  )  # fmt: skip
  digits.loss = dict(name="diffusion", P_mean=-1.0, P_std=1.2, weighting="constant")
  digits.samplers = dict(heun=dict(name="heun", num_steps=3))
  digits.evals, digits.total_steps = {}, 2
  student = digits.copy_and_resolve_references()
  student.loss = dict(name="scd", guidance=(1.0, 2.0), **SCM)
  student.net.guidance = True
  return digits, student


@pytest.mark.slow  # a U-Net and its sampler to compile
def test_guidance_needs_a_teacher_that_dropped_labels(tmp_path):
  digits, student = labelled_digits()
  train.train(experiment.parse(digits), tmp_path / "teacher")
  student.teacher.workdir = str(tmp_path / "teacher")
  with pytest.raises(ValueError, match="trained with loss.label_dropout=0: train one with 0.1"):
    train.train(experiment.parse(student), tmp_path / "student")


def test_guidance_of_a_sampler_needs_a_network_that_dropped_labels():
  digits = labelled_digits()[0]
  digits.samplers.heun.guidance = dict(name="classifier_free", scale=1.5)
  with pytest.raises(ValueError, match="loss.label_dropout is 0: train with label_dropout=0.1"):
    experiment.compiled_sampler(experiment.parse(digits), "heun", sharding.make_mesh())


@pytest.mark.slow  # two runs and two samplers of a U-Net to compile
def test_a_guided_student_trains_from_a_teacher_that_dropped_labels(tmp_path):
  digits, student = labelled_digits()
  digits.loss.label_dropout = 0.2
  train.train(experiment.parse(digits), tmp_path / "dropped")
  student.teacher.workdir = student.init_from.workdir = str(tmp_path / "dropped")
  student.samplers = dict(
    plain=dict(name="consistency"),
    guided=dict(name="consistency", guidance=dict(name="input", scale=2.0)),
  )
  train.train(experiment.parse(student), tmp_path / "student")
  trained = stored_runs.load_network(tmp_path / "student", sharding.make_mesh())
  params = jax.tree.map(lambda a: a + 0.05, trained.averages["main"])
  given = experiment.parse(student)
  draw = lambda key: experiment.compiled_sampler(given, key, sharding.make_mesh())(
    params, jax.random.key(0), np.arange(8)
  )[1]
  assert np.abs(draw("plain") - draw("guided")).max() > 1e-4  # the scale reaches the network


def test_weights_of_another_preconditioning_are_refused(teacher, tmp_path):
  config = method("dscm", teacher)
  config.net.preconditioning = "edm"
  with pytest.raises(ValueError, match="net.preconditioning='trigflow', this run has 'edm'"):
    train.train(experiment.parse(config), tmp_path)


def test_weights_of_lpips_that_are_damaged_name_the_file(tmp_path):
  path = tmp_path / "lpips.npz"
  path.write_bytes(b"PK\x03\x04 and no more")
  config = method("ct", "")
  config.loss.distance = dict(name="lpips", path=str(path))
  with pytest.raises(ValueError, match="loss.distance.path: .*lpips.npz is no .npz of weights: "):
    experiment.parse(config).method.lpips()


@pytest.mark.slow
def test_ct_trains_with_lpips_from_a_file_of_weights(tmp_path, monkeypatch):
  # Random weights of a narrow VGG16: whether they reach the step, and stay there, is the matter.
  monkeypatch.setattr(lpips, "STAGES", tuple((convs, 8) for convs, _ in lpips.STAGES))
  rng = np.random.default_rng(0)
  weights = {name: 0.05 * rng.standard_normal(s, np.float32) for name, s in lpips.shapes().items()}
  np.savez(tmp_path / "lpips.npz", **weights)
  images = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
  labels = np.arange(16) % 2
  arrays = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
  np.savez(tmp_path / "images.npz", **arrays)
  config = method("ct", "")
  config.data = dict(name="npz", flip=False, npz=dict(path=str(tmp_path / "images.npz")))
  config.net = dict(
    name="ddpmpp", resolution=16, in_channels=3, channels=4, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), dropout=0.0, num_classes=0, augment_dim=0, dtype="float32",
  )  # fmt: skip
  config.loss.distance = dict(
    name="lpips", path=str(tmp_path / "lpips.npz"), pooling="max", resize=None
  )
  config.evals, config.total_steps, config.loss.curriculum.total_steps = {}, 2, 2
  config.batch_size, config.log_every_steps = 2, 1
  train.train(experiment.parse(config), tmp_path / "run")
  records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
  last = [record for record in records if "loss" in record][-1]
  assert last["step"] == 2 and last["distance"] > 0


def test_a_mistyped_part_of_a_guidance_is_named():
  config = tiny.config().unlock()
  config.samplers.one_step.guidance = dict(name="classifier_free", scale=1.5, intervall=(0.1, 1.0))
  config.net.num_classes, config.loss.label_dropout = 3, 0.1
  with pytest.raises(ValueError, match="takes no intervall. It takes: name, scale, interval"):
    experiment.compiled_sampler(experiment.parse(config), "one_step", sharding.make_mesh())


def test_the_documented_list_of_methods_is_that_of_the_table():
  text = methods_table.FILE.read_text()
  written = text.split(methods_table.BEGIN)[1].split(methods_table.END)[0]
  assert written == methods_table.table(), f"Run {methods_table.__name__}: see its docstring."
