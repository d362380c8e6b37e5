"""A start makes each part of an experiment once, and reads of other runs no more than it uses."""

import collections
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.experiment import methods, models, optimizers
from cmjax.program import compiled_step, stored_runs, train
from cmjax.run import checkpoint
from helpers import tiny


@pytest.fixture(name="teacher", scope="module")
def _teacher(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("teacher")
  tiny.train(tiny.config(evals={}, total_steps=2), workdir)
  return workdir


def student(teacher, **values):
  """sCD with VSD from a teacher that it starts from, too: every part that there is."""
  config = tiny.config(evals={}, total_steps=2, **values).unlock()
  config.loss.name = "scd"
  config.loss.vsd = dict(
    lambda_vsd=1.0, P_mean=0.4, P_std=2.0,
    fake=dict(P_mean=-1.0, P_std=1.4, optim=config.optim.to_dict()),
  )  # fmt: skip
  config.teacher.workdir = config.init_from.workdir = str(teacher)
  return config


@pytest.fixture(autouse=True, scope="module")
def _compiled_once():
  """Steps of equal arguments are compiled once: the runs here that have them train alike."""
  programs, original = {}, compiled_step.compile_step

  def compile_step(step_fn, mesh, arguments, options):
    key = str(jax.tree.map(jnp.shape, arguments))
    if key not in programs:
      programs[key] = original(step_fn, mesh, arguments, options)
    return programs[key]

  with mock.patch.object(compiled_step, "compile_step", compile_step):
    yield


@pytest.fixture(name="made")
def _made(monkeypatch):
  """How often each factory was called."""
  calls = collections.Counter()

  def counted(name, factory):
    def made(*args, **kwargs):
      calls[name] += 1
      return factory(*args, **kwargs)

    made.__wrapped__ = factory  # whose arguments are checked
    return made

  monkeypatch.setattr(models, "network", counted("network", models.network))
  monkeypatch.setitem(optimizers.OPTIMIZERS, "adam", counted("adam", optimizers.optim.adam))
  learned = counted("learned", methods.weighting.learned)
  monkeypatch.setattr(methods.weighting, "learned", learned)
  scm = methods.METHODS["scd"]
  monkeypatch.setitem(methods.METHODS, "scd", scm._replace(make=counted("method", scm.make)))
  monkeypatch.setattr(optimizers, "averages", counted("averages", optimizers.averages))
  return calls


def test_one_start_of_a_distillation_makes_each_part_once(teacher, tmp_path, made):
  config = student(teacher)
  train.train(experiment.parse(config), tmp_path)
  # The student's and the teacher's network; the optimizer and the fake score's; three weightings.
  once = {"network": 2, "adam": 2, "learned": 3, "method": 1, "averages": 1}
  assert made == once
  made.clear()
  config.total_steps = 4
  train.train(experiment.parse(config), tmp_path)
  assert made == once


@pytest.fixture(name="read")
def _read(monkeypatch, shared_programs):
  """[(folder of the run, names of the arrays)] of what orbax was told to restore."""
  restored, original = [], ocp.CheckpointManager.restore

  def restore(self, step, **kwargs):
    found = original(self, step, **kwargs)
    if "state" in found.keys():  # no dict
      restored.append((self.directory.parent.name, set(tiny.leaves(found["state"]))))
    return found

  monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
  return restored


def test_of_the_teacher_one_average_is_read_and_that_once(teacher, tmp_path, read):
  config = student(teacher, **{"teacher.ema": "short", "init_from.ema": "short"})
  train.train(experiment.parse(config), tmp_path)
  shapes = jax.eval_shape(experiment.parse(config).network.init, jax.random.key(0))
  names = {f"ema/short/{name}" for name in tiny.leaves(jax.tree.map(jnp.zeros_like, shapes))}
  assert read == [(teacher.name, names)]

  read.clear()  # a run that goes on reads itself, and of the teacher what it distils
  config.total_steps = 4
  train.train(experiment.parse(config), tmp_path)
  (_, of_teacher), (own, all_of_it) = sorted(read, key=lambda pair: len(pair[1]))
  assert of_teacher == names and own == tmp_path.name
  assert all_of_it == set(tiny.state(tmp_path))


def test_a_start_from_another_average_than_the_teachers_reads_both(teacher, tmp_path, read):
  config = student(teacher, **{"teacher.ema": "short", "init_from.ema": "main"})
  train.train(experiment.parse(config), tmp_path)
  assert [{name.split("/")[1] for name in names} for _, names in read] == [{"short"}, {"main"}]


def test_a_state_comes_back_from_a_checkpoint_bit_for_bit_and_its_record_with_it(tmp_path):
  exp = tiny.experiment_of()
  state, _ = sharding.create(experiment.state_init(exp), sharding.make_mesh(), jax.random.key(5))
  record, mesh = experiment.stored_record(exp), sharding.make_mesh()
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(0, state, record)
  checkpoints.close()
  restored = stored_runs.load_state(tmp_path, mesh)
  tiny.assert_same(tiny.leaves(restored.state), tiny.leaves(state))
  assert restored.meta["config"] == experiment.as_json(record)
  again = experiment.parse(restored.meta["config"])
  assert experiment.as_json(experiment.stored_record(again)) == experiment.as_json(record)
  trained = stored_runs.load_network(tmp_path, mesh)
  tiny.assert_same(tiny.leaves(trained.averages), tiny.leaves(state.ema))
  _, short, step = stored_runs.load_average(tmp_path, "short", mesh)
  tiny.assert_same(tiny.leaves(short), tiny.leaves(state.ema["short"]))
  assert step == 0


class Logger:
  """Keeps what it is told."""

  def __init__(self):
    self.scalars, self.pictures, self.closed = [], [], 0

  def write(self, step, scalars):
    assert not self.closed
    self.scalars.append((step, dict(scalars)))

  def images(self, step, name, pixels):
    assert not self.closed and pixels.dtype == np.uint8 and pixels.ndim == 3
    self.pictures.append((step, name))

  def close(self):
    self.closed += 1


def test_a_logger_of_ones_own_gets_scalars_and_pictures_and_is_closed(tmp_path):
  mine, other = Logger(), Logger()
  exp = tiny.experiment_of(total_steps=6)._replace(loggers=(mine, other))
  train.train(exp, tmp_path)
  losses = [(step, values["loss"]) for step, values in mine.scalars if "loss" in values]
  assert [step for step, _ in losses] == [2, 4, 6] and all(math.isfinite(v) for _, v in losses)
  assert any("swd/floor" in values for _, values in mine.scalars)
  assert mine.pictures == [(0, "two_steps_main"), (6, "two_steps_main")]
  assert mine.closed == other.closed == 1 and other.scalars == mine.scalars
  assert "loggers" not in experiment.stored_record(exp)


def test_a_logger_is_closed_where_a_run_fails_and_where_another_logger_does(tmp_path, monkeypatch):
  class Broken(Logger):
    def close(self):
      raise OSError("the line is dead")

  original = experiment.batches
  nan = lambda batch: {name: x * math.nan for name, x in batch.items()}
  monkeypatch.setattr(experiment, "batches", lambda *args: (nan(b) for b in original(*args)))
  mine = Logger()
  exp = tiny.experiment_of(evals={})._replace(loggers=(Broken(), mine))
  with pytest.raises((FloatingPointError, OSError)):
    train.train(exp, tmp_path)
  assert mine.closed == 1
