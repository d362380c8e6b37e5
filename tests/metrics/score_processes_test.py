"""A score knows nothing of how many processes computed it, nor in what batches."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def score(tmp_path, count):
  """The cards of each of `count` processes of tests/helpers/scored.py, four devices together."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
  }
  outs = [tmp_path / f"{count}.{i}.json" for i in range(count)]
  several = lambda i: (f"localhost:{port}", str(count), str(i)) if count > 1 else ()
  command = (
    sys.executable,
    str(ROOT / "tests" / "helpers" / "scored.py"),
    str(tmp_path / "data.npz"),
  )
  started = [
    subprocess.Popen([*command, str(out), *several(i)], env=environment, stderr=subprocess.PIPE)
    for i, out in enumerate(outs)
  ]
  try:
    for process in started:
      _, said = process.communicate(timeout=300)
      assert process.returncode == 0, said.decode()[-3000:]
  finally:
    for process in started:
      process.kill()
      process.wait()
  return [json.loads(out.read_text()) for out in outs]


def numbers(card):
  """{path: number} of everything on a card that was computed."""
  parts = {"values": card["values"], "floor": card["floor"], **card["classes"]}
  return {f"{a}/{b}": value for a, part in parts.items() for b, value in part.items()}


@pytest.mark.slow
def test_scores_of_5000_images_are_the_same_from_one_process_and_two_in_batches_of_64_and_250(
  tmp_path,
):
  rng = np.random.default_rng(0)
  draw = lambda num: {
    "images": rng.integers(0, 190, (num, 4, 4, 3)).astype(np.uint8), "labels": np.arange(num) % 3,
  }  # fmt: skip
  splits = {"train": draw(601), "test": draw(211)}
  arrays = {f"{s}_{name}": a for s, both in splits.items() for name, a in both.items()}
  np.savez(tmp_path / "data.npz", **arrays)
  made = [*score(tmp_path, 1), *score(tmp_path, 2)]
  cards = [card for one in made for card in one.values()]
  assert len(cards) == 6
  first = numbers(cards[0])
  assert len(first) > 40 and 0 < first["values/precision"] < 1
  for card in cards:
    # Nothing twice, nothing padded: the images themselves are the same.
    assert card["images"] == cards[0]["images"] and card["images"]["num"] == 5_000
    assert card["reference"] == cards[0]["reference"] and card["reference"]["num"] == 601
    found = numbers(card)
    assert found.keys() == first.keys()
    for name, value in found.items():
      assert value == pytest.approx(first[name], rel=1e-9, abs=1e-12), name
