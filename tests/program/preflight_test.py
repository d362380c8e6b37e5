"""What is checked of machines before a run is paid for, and that each check can fail."""

import pathlib

import jax
import numpy as np
import pytest

from cmjax.base import sharding
from cmjax.program import preflight, profiling
from cmjax.run import checkpoint
from helpers import in_process, tiny

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.devices, pytest.mark.usefixtures("shared_programs")]
VALUES = {"net.width": 128, "mesh.data": 2, "mesh.fsdp": 4}
ROWS = (
  *("host to devices", "all-reduce", "products", "products", "compiling", "a step"),
  *("loss of random batches", "10 steps twice", "a trace", "a checkpoint"),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  """Bandwidth is no matter here."""
  monkeypatch.setattr(preflight, "NUM_BYTES", {"cpu": 2**16})


def verdicts(table):
  """[(row, verdict)] of a table."""
  lines = table.split("\n\n")[1].splitlines()
  return [(line[:24].strip(), line[24:32].strip()) for line in lines]


@pytest.mark.slow
def test_eight_devices_pass_and_leave_the_trace_alone(tmp_path):
  table, passed = preflight.preflight(tiny.experiment_of(**VALUES), tmp_path)
  assert passed and verdicts(table) == [(row, "ok") for row in ROWS], table
  assert table.startswith("8 x cpu in one process, mesh data 2, fsdp 4; jax ")
  assert "float32 by default is float32" in table and "Nothing is wrong." in table
  left = {path.name for path in (tmp_path / "preflight").iterdir()}
  assert left == {"profile"}
  assert profiling.steps_in(tmp_path / "preflight" / "profile") == [10, 11, 12]


@pytest.mark.slow
def test_the_verb_says_the_table_and_its_exit_code(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = ("--config=tests/helpers/tiny.py", f"--workdir={tmp_path}", "--compile_cache=")
  arguments += ("--config.mesh.fsdp=4", "--config.net.width=128")
  run = lambda: in_process.verb("preflight", *arguments)
  code, out, err = in_process.answer(capsys, run)
  assert code == 0 and "10 steps twice" in out, err
  monkeypatch.setattr(preflight, "precision_of", lambda error: None)
  code, out, _ = in_process.answer(capsys, run)
  assert code == 1 and "Something is wrong: see the lines with WRONG." in out


def broken_restore(self, layout):
  abstract = layout({})
  zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), abstract)
  return checkpoint.Restored(10, zeros, {})


def drifting(monkeypatch):
  """Steps that give other bits each time."""
  original, count = preflight._first_state, []

  def first_state(exp, mesh):
    count.append(1)
    state = original(exp, mesh)
    nudge = lambda x: x + len(count) * 1e-3 if x.dtype == np.float32 else x
    return state.replace(params=jax.tree.map(nudge, state.params))

  monkeypatch.setattr(preflight, "_first_state", first_state)


BREAKS = {
  "host to devices": lambda m: m.setattr(
    sharding, "local_values", lambda a: (None, np.asarray(a) + 1)
  ),
  "all-reduce": lambda m: m.setattr(
    preflight, "_num_bytes", lambda mesh: 1 / 0 if m.calls.append(1) or len(m.calls) == 2 else 2**16
  ),
  "10 steps twice": drifting,
  "a trace": lambda m: m.setattr(profiling, "steps_in", lambda folder: [10, 12]),
  "a checkpoint": lambda m: m.setattr(checkpoint.Checkpoints, "restore", broken_restore),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_check_can_fail_and_the_others_go_on(tmp_path, monkeypatch, name):
  monkeypatch.calls = []
  BREAKS[name](monkeypatch)
  table, passed = preflight.preflight(tiny.experiment_of(**VALUES), tmp_path)
  assert not passed and [row for row, verdict in verdicts(table) if verdict == "WRONG"] == [name]
  assert len(verdicts(table)) == len(ROWS)


def test_a_gpu_without_the_setting_may_differ_and_with_it_may_not():
  row = lambda **values: preflight._determinism_row(tiny.experiment_of(**values), "gpu", False)
  assert row().verdict == "note" and "--config.deterministic=True" in row().found
  assert row(deterministic=True).verdict == "WRONG"


def rounded(x, bits):
  """Float32 numbers with so many bits of mantissa, as tensor cores take them."""
  mantissa, exponent = np.frexp(x.astype(np.float64))
  return np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


@pytest.mark.parametrize(
  "bits, name", [(24, "float32"), (16, "bfloat16 in several passes"), (11, "TF32"), (8, "bfloat16")]
)
def test_products_are_known_by_their_error(bits, name):
  a, b = np.random.default_rng(1).normal(size=(2, 256, 256)).astype(np.float32)
  product = (rounded(a, bits) @ rounded(b, bits)).astype(np.float32)
  assert preflight.precision_of(preflight.relative_error(product, a, b)) == name


def test_products_of_fp8_are_nothing_known():
  a, b = np.random.default_rng(1).normal(size=(2, 256, 256)).astype(np.float32)
  product = rounded(a, 4) @ rounded(b, 4)
  assert preflight.precision_of(preflight.relative_error(product, a, b)) is None


def test_a_checksum_sees_every_bit_and_every_place():
  base = {"a": np.arange(6, dtype=np.float32), "b": np.arange(4, dtype=np.int32)}
  first = np.asarray(preflight._checksum(base))
  flipped = base["a"].view(np.uint32).copy()
  flipped[3] ^= 1
  swapped = base["a"][[1, 0, 2, 3, 4, 5]]
  for other in (flipped.view(np.float32), swapped):
    found = np.asarray(preflight._checksum({**base, "a": other}))
    assert found[0] != first[0] and found[1] == first[1]


def test_what_is_wrong_on_another_process_is_wrong_here(tmp_path, monkeypatch):
  monkeypatch.setattr(sharding, "all_agree", lambda ok: False)
  monkeypatch.setattr(preflight, "_of_steps", lambda *_: iter(()))
  table, passed = preflight.preflight(tiny.experiment_of(**VALUES), tmp_path)
  assert not passed and table.splitlines()[-1].startswith(
    "Something is wrong on another process: its table says what."
  )
