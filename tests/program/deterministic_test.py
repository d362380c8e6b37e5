"""A step that gives the same bits every time: what XLA is told, and that a run keeps to it."""

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from cmjax.program import deterministic, identity
from helpers import tiny


@pytest.fixture(name="tmp_path")
def _tmp_path(tmp_path):
  return epath.Path(tmp_path)  # as `paths.place` gives it


pytestmark = pytest.mark.usefixtures("shared_programs")
ALONE = {"evals": {}, "checkpoint.every_steps": 4, "total_steps": 4}


def test_a_gpu_is_told_to_leave_out_what_differs_and_its_kernels_are_kept(tmp_path):
  run = tiny.experiment_of(deterministic=True).run
  path = deterministic.kernels(tmp_path)
  first = deterministic.options(run, "gpu", tmp_path)
  assert first == {
    "xla_gpu_exclude_nondeterministic_ops": True,
    "xla_gpu_dump_autotune_results_to": str(path),
  }
  path.write_text("kernels")
  second = deterministic.options(run, "gpu", tmp_path, started=True)
  assert second == {
    "xla_gpu_exclude_nondeterministic_ops": True,
    "xla_gpu_load_autotune_results_from": str(path),
  }
  for options in (first, second):  # XLA knows each of them
    jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile(options)


def test_an_option_that_xla_does_not_know_is_an_error_and_not_an_abort():
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
    jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile({"xla_gpu_no_such_thing": True})


def test_kernels_that_are_gone_are_told(tmp_path, caplog):
  run = tiny.experiment_of(deterministic=True).run
  deterministic.options(run, "gpu", tmp_path, started=True)
  assert "process_0.textproto is missing" in caplog.text and "may differ in bits" in caplog.text


def test_nobody_else_is_told_anything(tmp_path):
  asked, plain = (tiny.experiment_of(deterministic=value).run for value in (True, False))
  assert deterministic.options(asked, "cpu", tmp_path) is None
  assert deterministic.options(plain, "gpu", tmp_path) is None
  assert not list(tmp_path.iterdir())


def test_it_is_part_of_what_a_run_is(tmp_path):
  tiny.train(tiny.config(**ALONE), tmp_path)
  more = ALONE | {"total_steps": 8}
  with pytest.raises(ValueError, match="deterministic: False in the checkpoint, True now"):
    tiny.train(tiny.config(deterministic=True, **more), tmp_path)
  tiny.train(tiny.config(deterministic=False, **more), tmp_path)  # which it was without a word
  more["total_steps"] = 12
  tiny.train(tiny.config(deterministic=True, **more), tmp_path, allow_config_change=True)


def test_a_run_may_be_scored_without_it():
  record, stored = ({"deterministic": value, "seed": 0} for value in (False, True))
  identity.check_trained(record, stored, "run")
