"""The benchmarks of the input and of the loop: that they run, and that what they print adds up."""

import pathlib
import re
import runpy
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def printed(name, monkeypatch, capsys, *flags):
  """What benchmarks/`name`.py prints."""
  monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
  runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"]()
  return capsys.readouterr().out


@pytest.mark.slow
def test_the_time_outside_of_steps_is_what_their_length_leaves(monkeypatch, capsys):
  small = ("--num_images=600", "--batch_size=16", "--steps=40", "--step_ms=20")
  out = printed("cost/overhead", monkeypatch, capsys, "--parts=loop", *small)
  number = lambda name: float(re.search(rf"{name} +([\d.]+)", out)[1])
  steps, gaps = number("a step is running"), number("none is running")
  assert 20 <= steps < 40 and 0 <= gaps < 20  # milliseconds
  assert number("outside of the step") == pytest.approx(100 * gaps / (steps + gaps), rel=0.05)


@pytest.mark.slow
def test_the_input_is_compared_with_the_step_that_eats_it(monkeypatch, capsys, tmp_path):
  path = tmp_path / "small.npz"
  images = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), np.uint8)
  np.savez(path, train_images=images)
  flags = ("--batch_size=64", "--seconds=0.1", "--windows=2", "--processes", "2")
  step = ("--channels=8", "--num_levels=1", "--step_batch_size=4", "--steps=2")
  out = printed("cost/input", monkeypatch, capsys, f"--npz={path}", *flags, *step)
  rate = lambda name: float(re.search(rf"{name} +([\d,]+)", out)[1].replace(",", ""))
  ratio = rate("all, 2 threads") / rate("step of [\\d.]+ M, batch 4")
  said = float(re.search(r"over the step: ([\d,]+) times in wall", out)[1].replace(",", ""))
  assert said == pytest.approx(ratio, rel=0.2)  # the step's images/s is printed as a whole number
  assert rate("those of 1 of 2 processes") > 0
