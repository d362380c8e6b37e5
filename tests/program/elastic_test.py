"""A run moves to other numbers of devices: same batches, same noise, same parameters."""

import os
import signal

import jax
import numpy as np
import pytest

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.program import train
from helpers import tiny, watched

pytestmark = [pytest.mark.devices, pytest.mark.usefixtures("shared_programs")]
TINY = {"net.width": 128, "batch_size": 64, "optim.lr": 1e-3, "evals": {}}


def digits():
  """The page's network, made small, without scores."""
  config = pages.load("digits_sct").unlock()
  config.net.update(channels=32, channel_mult=(1,), num_blocks=0, attn_resolutions=())
  config.update(batch_size=16, evals={}, total_steps=12, log_every_steps=6)
  config.init_from.workdir = ""
  return config


def sitting(monkeypatch, config, workdir, data, fsdp, stop=None):
  """Trains on data * fsdp devices, up to SIGTERM at step `stop`: {step: rows of the batch}."""
  seen, all_devices, batches = {}, sharding.make_mesh, experiment.batches

  def watch(step, digests):
    seen[step] = digests
    if step + 1 == stop:
      os.kill(os.getpid(), signal.SIGTERM)

  config = config.copy_and_resolve_references()
  config.mesh = dict(data=data, fsdp=fsdp)
  with monkeypatch.context() as patch:
    patch.setattr(experiment, "batches", watched.watching(batches, watch))
    patch.setattr(
      sharding,
      "make_mesh",
      lambda data, fsdp: all_devices(data, fsdp, devices=jax.devices()[: data * fsdp]),
    )
    if stop is None:
      tiny.train(config, workdir)
    else:
      with pytest.raises(train.Interrupted):
        tiny.train(config, workdir)
  return seen


def with_a_gradient(name, x):
  """The entries of an array that the loss depends on: all but the keys' biases in attention.

  A key's bias adds the same to all scores of a query, which the softmax takes away again. Its
  gradient is rounding alone, and Adam makes steps of that.
  """
  return x.reshape(-1, 3)[:, [0, 2]] if name.endswith("qkv/bias") else x  # {q, k, v} is innermost


@pytest.mark.slow
@pytest.mark.parametrize(("config", "limit"), [(tiny.config(**TINY), 1e-5), (digits(), 1e-5)])
def test_a_run_on_8_then_4_then_8_then_2_devices_is_the_run_on_8(
  config, limit, tmp_path, monkeypatch
):
  whole, moved, total = tmp_path / "whole", tmp_path / "moved", config.total_steps
  expected = sitting(monkeypatch, config, whole, 2, 4)
  assert [*expected] == [*range(total)]
  assert all(len(digests) == config.batch_size for digests in expected.values())

  stops = (total // 4, total // 2, total * 3 // 4, None)
  seen = {}
  for mesh, stop in zip(((2, 4), (2, 2), (2, 4), (1, 2)), stops, strict=True):
    leg = sitting(monkeypatch, config, moved, *mesh, stop)
    assert [*leg] == [*range(len(seen), stop or total)]
    seen |= leg
  assert seen == expected  # every row of every batch

  one, other = tiny.state(whole), tiny.state(moved)
  assert one.keys() == other.keys()
  norm = lambda x: np.linalg.norm(np.asarray(x, np.float64))
  parts = {k: (with_a_gradient(k, x), with_a_gradient(k, other[k])) for k, x in one.items()}
  differences = {k: norm(b - a) / max(norm(a), 1e-8) for k, (a, b) in parts.items()}
  worst = sorted(differences, key=lambda k: differences[k], reverse=True)
  for name in worst[:8]:
    print(f"{differences[name]:.1e} {name}")  # noqa: T201
  assert differences[worst[0]] < limit
