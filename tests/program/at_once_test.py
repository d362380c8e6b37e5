"""Two commands at once on one workdir: what both write is whole, and of one of them."""

import json
import re
import threading

import numpy as np
import pytest
from etils import epath
from PIL import Image

from cmjax import experiment
from cmjax.base import sharding
from cmjax.metrics import cards, references
from cmjax.program import averages, convert, drawing, sample, searched_times, stored_runs, sweep
from cmjax.run import writer
from helpers import tiny


def at_once(*calls):
  """Runs the functions in threads; returns what they raised."""
  errors = []

  def guarded(call):
    try:
      call()
    except Exception as error:
      errors.append(error)

  threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return errors


@pytest.mark.parametrize("shape", [(4, 4, 4, 3), (2, 8, 8, 1), (64, 2)])
def test_samples_and_their_picture_are_of_the_same_call(tmp_path, shape):
  drawn = [np.full(shape, value, np.float32) for value in (-0.5, 0.0, 0.5)]

  def write(x0):
    for _ in range(4):
      pixels = writer.picture(x0)
      arrays, folder = {"samples": x0}, epath.Path(tmp_path) / "samples"
      drawing.write(folder, "one_step_main_step6_seed0", arrays, pixels, epath.Path(tmp_path))

  assert not at_once(*(lambda x0=x0: write(x0) for x0 in drawn))
  (picture,), (arrays,) = (list((tmp_path / "samples").glob(f"*.{end}")) for end in ("png", "npz"))
  with np.load(arrays) as found:
    (last,) = (x0 for x0 in drawn if np.array_equal(x0, found["samples"]))
  np.testing.assert_array_equal(np.asarray(Image.open(picture)), writer.picture(last))
  assert len(list((tmp_path / "samples").iterdir())) == 2


def test_searches_of_several_samplers_at_once_keep_the_times_of_all(tmp_path):
  found = [{f"sampler{i}": {"mid_times": [i / 10]}} for i in range(12)]
  assert not at_once(*(lambda one=one: searched_times.write(tmp_path, one) for one in found))
  stored = json.loads((tmp_path / searched_times.FILE).read_text())
  assert {name: times["mid_times"] for name, times in stored.items()} == {
    f"sampler{i}": [i / 10] for i in range(12)
  }


POINTS = np.zeros((4, 2), np.float32)


def write_samples(workdir, pixels):
  drawing.write(workdir / "samples", "one_step", {"samples": POINTS}, pixels, workdir)


LATE = {
  "sample": lambda workdir: write_samples(epath.Path(workdir), writer.picture(POINTS)),
  "latents": lambda workdir: write_samples(epath.Path(workdir), None),
  "search": lambda workdir: searched_times.write(workdir, {"one_step": {"mid_times": [0.1]}}),
  "sweep": lambda workdir: sweep._add(
    epath.Path(workdir), epath.Path(workdir) / "posthoc" / "a.json", {}, {}
  ),
  "ema": lambda workdir: averages._alone(workdir).__enter__(),
}


@pytest.mark.parametrize("write", LATE.values(), ids=LATE)
def test_what_ends_after_its_workdir_was_renamed_says_so_and_makes_none_anew(tmp_path, write):
  with pytest.raises(ValueError, match="Cannot write to the workdir .*gone: No such file or direc"):
    write(tmp_path / "gone")
  assert not list(tmp_path.iterdir())


REFUSED = "Another (run|process) |A checkpoint is being |exists: choose another|has checkpoints alr"


@pytest.mark.slow
@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.soak)])
def test_two_of_every_mode_at_once_lose_and_tear_nothing(tmp_path, times):
  """In threads: locks are of open files, so that they keep threads apart as they do processes."""
  workdir, foreign, mesh = tmp_path / "run", tmp_path / "foreign.safetensors", sharding.make_mesh()
  config = lambda steps: tiny.config("snapshots", total_steps=steps)
  tiny.train(config(12), workdir)
  convert.export(workdir, foreign, ema="main")
  weights = tiny.leaves(stored_runs.load_average(workdir, "main", mesh)[1])
  given = experiment.parse(config(12))
  searched = dict(name="two_steps", num_samples=32, num_probes=5, seed=0)
  for i in range(times):
    steps = 14 + 2 * (i // max(2, times // 5))  # else the run is at its end
    modes = {
      "train": lambda steps=steps: tiny.train(config(steps), workdir),
      "evaluate": lambda: sample.evaluate(given, workdir),
      "search": lambda: sample.search_times(given, workdir, **searched),
      "ema": lambda i=i: averages.write(workdir, [0.05 + i / 1000], mesh),
      "sweep": lambda: sweep.sweep(workdir, [0.05, 0.1]),
      "sample": lambda i=i: sample.sample(given, workdir, num_samples=4, name="one_step", seed=i),
      "reference": lambda: sample.make_reference(given, tmp_path / "reference.npz"),
      "convert": lambda i=i: convert.convert(foreign, tmp_path / f"converted{i}"),
      "export": lambda i=i: convert.export(workdir, tmp_path / f"out{i}.safetensors"),
    }
    for mode, call in modes.items():
      errors = at_once(call, call)
      assert len(errors) < 2, (mode, errors)
      assert all(re.search(REFUSED, str(e)) and "\n" not in str(e) for e in errors), (mode, errors)
    assert tiny.state(workdir)["step"] == steps
    for path in workdir.rglob("*.json"):
      json.loads(path.read_text())
    for path in (workdir / "cards").glob("*.json"):
      cards.read(path)
    references.read(tmp_path / "reference.npz", "pixels")
    average = stored_runs.load_average(workdir, f"posthoc_{0.05 + i / 1000:.3f}", mesh)
    assert average[2] == steps
    converted = stored_runs.load_average(tmp_path / f"converted{i}", "main", mesh)
    tiny.assert_same(tiny.leaves(converted[1]), weights)
    (arrays,) = (workdir / "samples").glob(f"one_step_*_step{steps}_seed{i}.npz")
    with np.load(arrays) as found:
      assert found["samples"].shape == (4, 2)
  assert not list(tmp_path.rglob("*.partial")) and not list(
    tmp_path.rglob("*orbax-checkpoint-tmp*")
  )
