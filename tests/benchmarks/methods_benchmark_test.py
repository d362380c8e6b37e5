"""The comparison's runs: each method's page, stretched to the steps that its budget pays for."""

import json
import pathlib
import runpy
import types

import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import experiment, tangent
from cmjax.base import flat_dicts
from cmjax.program import sample, searched_times, stored_runs

BENCHMARK = runpy.run_path(
  str(pathlib.Path(__file__).parents[2] / "benchmarks" / "comparison" / "methods.py"),
  run_name="methods",
)
ARGS = types.SimpleNamespace(variant="", workdir=pathlib.Path("runs"), curve=0, scale=1.0)


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
@pytest.mark.parametrize("method", BENCHMARK["METHODS"])
def test_a_method_stretched_to_any_length_still_builds(method, data):
  resolution = {"digits": 8, "fashion_mnist": 28}[data]
  for steps in (187, 605, 1213):
    config = BENCHMARK["configure"](ARGS, data, method, 0, steps)
    assert config.total_steps == steps and config.net.resolution == resolution
    given = experiment.parse(config)
    frozen = experiment.Frozen((given.network, None))
    assert callable(given.method.loss(given.network, frozen))
    if method in ("ct", "ict"):
      assert config.loss.curriculum.total_steps == steps
    if method == "ect":  # all stages, and nearly all steps in them
      used = config.loss.pairs.num_stages * config.loss.pairs.steps_per_stage
      assert 0.9 * steps < used <= steps


def test_the_learning_rate_decays_later_only_where_students_train_longer():
  decay = lambda scale, method: BENCHMARK["configure"](
    types.SimpleNamespace(**{**vars(ARGS), "scale": scale}), "digits", method, 0, 6_000
  )
  for method in ("scd", "scd_vsd"):
    assert decay(1.0, method).optim.schedule.decay_steps == 60
    assert decay(8.0, method).optim.schedule.decay_steps == 600  # of a page of 600 steps
  assert decay(8.0, "scd_vsd").loss.vsd.fake.optim.schedule.decay_steps == 600
  assert decay(1.0, "scd_vsd").loss.vsd.fake.optim.schedule.decay_steps == 60


def test_rows_of_an_earlier_sitting_are_not_made_again_and_a_missing_teacher_is(
  monkeypatch, tmp_path
):
  known, workdir, trained = tmp_path / "known", tmp_path / "runs", []
  known.mkdir()
  (known / "methods_digits.json").write_text('{"teacher": {"0": {}}, "ect": {"0": {"old": 1}}}')
  (workdir / "digits").mkdir(parents=True)
  (workdir / "digits" / "flops.json").write_text('{"teacher": 3.0, "scd": 5.0, "ect": 4.0}')

  def train_and_score(config, folder):
    trained.append((folder.parent.name, config.total_steps))
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text("{}")
    return {"fd/floor": 0.5}

  functions = BENCHMARK["run"].__globals__
  monkeypatch.setitem(functions, "train_and_score", train_and_score)
  monkeypatch.setitem(functions, "make_detector", lambda *args: None)
  options = dict(data="digits", methods=("teacher", "ect", "scd"), seeds=1, scale=1.0, known=known)
  args = types.SimpleNamespace(**options, variant="", workdir=workdir, curve=0)
  BENCHMARK["train_all"](args, lambda: False)
  assert trained == [("teacher", 800), ("scd", 480)]  # 800 steps at 3 are 480 at 5
  rows = json.loads((workdir / "digits" / "results.json").read_text())
  assert rows["ect"] == {"0": {"old": 1}} and rows["scd"]["0"]["scores"] == {"fd/floor": 0.5}
  BENCHMARK["train_all"](args, lambda: False)
  assert len(trained) == 2


def test_the_second_step_is_searched_and_scored_where_a_run_is_there(monkeypatch, tmp_path):
  (tmp_path / "digits" / "scd" / "seed0" / "checkpoints").mkdir(parents=True)
  (tmp_path / "digits" / "flops.json").write_text('{"teacher": 3.0, "scd": 5.0, "ect": 4.0}')
  rows = {
    method: {"0": {"steps": 1, "gflop": 1.0, "seconds": 1.0, "curve": {}, "scores": scores}}
    for method, scores in {
      "teacher": {"fd/floor": 0.5, "fd/2/main": 9.0, "fd/heun/main": 1.0},
      "scd": {f"fd/{n}/{ema}": 2.0 + (ema == "main") for n in "124" for ema in ("main", "short")},
      "ect": {f"fd/{n}/main": 3.0 for n in "124"},
    }.items()
  }
  path = tmp_path / "digits" / "results.json"
  path.write_text(json.dumps(rows))

  def search_times(given, workdir, *, name, num_samples, num_probes, seed):
    assert name == "2" and num_samples == BENCHMARK["NUM_SAMPLES"] and num_probes == 12
    assert given.record["evals"]["fd"]["num_samples"] == num_samples
    searched_times.write(workdir, {name: {"mid_times": [0.7]}})

  def frechet_scores(given, mesh):
    assert given.evaluators["fd"].samplers == ("2",)
    (t,) = given.samplers["2"].record["mid_times"]
    return "fd", lambda params, key: {"2": params + t}

  loaded = types.SimpleNamespace(averages={"main": 1.0, "short": 0.5})
  monkeypatch.setattr(sample, "search_times", search_times)
  monkeypatch.setattr(experiment, "frechet_scores", frechet_scores)
  monkeypatch.setattr(stored_runs, "load_network", lambda *args: loaded)
  options = dict(data="digits", methods=("teacher", "scd", "ect"), seeds=1, scale=1.0)
  args = types.SimpleNamespace(**options, variant="", workdir=tmp_path, curve=0)
  BENCHMARK["search_all"](args, path, lambda: False)
  found = json.loads(path.read_text())
  assert found["scd"]["0"].pop("searched") == {
    "mid_times": [0.7], "scores": {"fd/2/main": 1.7, "fd/2/short": 1.2}
  }  # fmt: skip
  assert found == rows  # a teacher has no such time, and of ECT only the row is here

  rows["scd"]["0"]["searched"] = {"mid_times": [0.7], "scores": {"fd/2/main": 1, "fd/2/short": 1.2}}
  lines = BENCHMARK["table"](rows, 0.99, "command")
  assert "| scd | 2 | 2 | 1.2 | 0.7 | 2 | short |" in next(ln for ln in lines if "| scd" in ln)
  assert "| ect | 3 | 3 |  |  | 3 | main |" in next(ln for ln in lines if "| ect" in ln)


def test_a_curve_has_each_score_once_by_its_compute(tmp_path):
  rows = [
    {"step": 0, "fd/1/main": 90.0},
    {"step": 20, "fd/1/main": 9.0, "fd/floor": 0.5, "loss": 1.0},
    {"step": 20, "fd/1/main": 8.0},  # made again: the run was stopped, and went on from before
    {"step": 40, "fd/1/main": 4.0, "fd/2/main": 3.0},
  ]
  lines = [json.dumps(row | {"time": 1.0}) for row in rows]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  found = BENCHMARK["curve"](tmp_path, 0.5)
  assert found == {"fd/1/main": [[10.0, 8.0], [20.0, 4.0]], "fd/2/main": [[20.0, 3.0]]}


@pytest.fixture
def tuning(monkeypatch):
  """benchmarks/comparison/tuning.py, which stands beside the module that it imports."""
  folder = pathlib.Path(__file__).parents[2] / "benchmarks" / "comparison"
  monkeypatch.syspath_prepend(str(folder))
  return types.SimpleNamespace(**runpy.run_path(str(folder / "tuning.py"), run_name="tuning"))


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
def test_tuning_changes_one_setting_and_distils_from_the_teacher_of_that_sigma_data(
  tuning, tmp_path, data
):
  (tmp_path / data).mkdir()
  (tmp_path / data / "flops.json").write_text('{"teacher": 3.0, "scd": 5.0}')
  args = types.SimpleNamespace(variant="", workdir=tmp_path, curve=0, scale=1.0, data=data)
  rows = tuning.settings(data)
  names = [row.name for row in rows]
  assert len(set(names)) == len(names)
  for i, row in enumerate(rows):
    config = tuning.configure(args, row, 0)
    asked = config.sigma_data, config.loss.P_mean, config.loss.P_std
    proposal = tuning.PROPOSED[data]["sigma_data"], *tuning.PROPOSED[data][row.stage]
    different = {
      name
      for name, a, b in zip(("sigma_data", "P_mean", "P_std"), asked, proposal, strict=True)
      if a != b
    }
    assert different == ({row.changed} if row.changed else set())
    if row.stage == "scd":
      teacher = rows[names.index(pathlib.Path(config.teacher.workdir).parent.name)]
      assert rows.index(teacher) < i  # trained before it is needed
      assert teacher.stage == "teacher" and teacher.sigma_data == row.sigma_data
      assert config.teacher.workdir == config.init_from.workdir
    else:
      assert not config.teacher.workdir


def test_rates_change_one_thing_in_each_method(monkeypatch, tmp_path):
  folder = pathlib.Path(__file__).parents[2] / "benchmarks" / "comparison"
  monkeypatch.syspath_prepend(str(folder))
  rates = types.SimpleNamespace(**runpy.run_path(str(folder / "rates.py"), run_name="rates"))
  (tmp_path / "digits").mkdir()
  flops = dict.fromkeys(BENCHMARK["METHODS"], 4.0)
  (tmp_path / "digits" / "flops.json").write_text(json.dumps(flops))
  args = types.SimpleNamespace(
    variant="", workdir=tmp_path, curve=0, scale=1.0, data="digits", seeds=1, docs=tmp_path,
    variants=rates.VARIANTS,
  )  # fmt: skip
  for method in rates.STUDENTS:
    steps = rates.methods.steps_of(args, "digits", method)
    page = flat_dicts.flat(rates.methods.configure(args, "digits", method, 0, steps).to_dict())
    for variant in rates.variants(args, method):
      config = flat_dicts.flat(rates.configure(args, method, variant, 0).to_dict())
      changed = {key: config[key] / page[key] for key in page if config[key] != page[key]}
      if variant == rates.NO_WARMUP:
        assert changed == {"loss.warmup_steps": 0}
      else:
        keys = {"optim.lr", *(["loss.vsd.fake.optim.lr"] if method == "scd_vsd" else [])}
        assert set(changed) == keys
        assert list(changed.values()) == pytest.approx([rates.FACTORS[variant]] * len(keys))
  assert rates.NO_WARMUP in rates.variants(args, "sct")
  assert rates.NO_WARMUP not in rates.variants(args, "ect")
  args.variants = ("rate x 5", rates.NO_WARMUP)
  assert [rates.variants(args, method) for method in ("sct", "ect")] == [
    ("rate x 5", rates.NO_WARMUP),
    ("rate x 5",),
  ]
  scores = lambda *values: {
    f"fd/1/{ema}": v for ema, v in zip(("short", "main", "long"), values, strict=True)
  }
  done = {"sct, rate / 5": {"0": {"scores": scores(4, 3, 5)}},
          "sct, rate x 5": {"0": {"scores": {}}}}  # fmt: skip
  known = {"sct": {"0": {"scores": {"fd/1/short": 2.0, "fd/4/short": 1.0}}, "1": {}}}
  row = rates.table(args, done, known)[-1]
  assert row == "| sct | 0.00015 | 2 (2) | 3 (4, 3, 5) |  | diverged |  |"


def test_both_parts_of_the_tangent_are_right_and_add_up_to_df_dt(monkeypatch):
  """robustness/stability.py: of an F linear in x, each part by hand, their sum by `tangent`."""
  folder = pathlib.Path(__file__).parents[2] / "benchmarks" / "comparison"
  monkeypatch.syspath_prepend(str(folder))
  benchmark = runpy.run_path(
    str(folder.parent / "robustness" / "stability.py"), run_name="stability"
  )
  x0, z = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("f")
  t, sd = jnp.array([0.1, 0.6, 1.1, 1.5]), 0.5
  F = lambda x, t: x * jnp.sin(3 * t)[:, None]
  by_t, by_x = benchmark["parts"](F, *map(jnp.asarray, (x0, z)), t, sigma_data=sd)
  c, s, wave, slope = (f[:, None] for f in (np.cos(t), np.sin(t), np.sin(3 * t), 3 * np.cos(3 * t)))
  x_t, dxdt = c * x0 + s * z, c * z - s * x0
  # f = (cos t - sin t sin 3t) x_t
  np.testing.assert_allclose(by_t, (-s - c * wave - s * slope) * x_t, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(by_x, (c - s * wave) * dxdt, rtol=1e-4, atol=1e-5)
  _, g = tangent.tangent(F, jnp.asarray(x_t), t, jnp.asarray(dxdt), sigma_data=sd)
  np.testing.assert_allclose(c * (by_t + by_x), g, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_time_embeddings_of_the_stability_plot_differ_as_the_paper_says(monkeypatch):
  """Fourier 16 has a d_t f more than ten times the others'; grad_x f . dx/dt is alike in all."""
  folder = pathlib.Path(__file__).parents[2] / "benchmarks" / "comparison"
  monkeypatch.syspath_prepend(str(folder))
  benchmark = runpy.run_path(
    str(folder.parent / "robustness" / "stability.py"), run_name="stability"
  )
  page = folder.parents[1] / "configs" / "digits_sct.py"
  args = types.SimpleNamespace(config=page, channels=16, images="data", batch_size=8)
  images, times = benchmark["load_images"](args), np.array([0.3, 1.0])
  assert images.shape == (8, 8, 8, 1) and -1 <= float(images.min()) < 0 < float(images.max()) <= 1
  found = {
    name: benchmark["norms"](benchmark["configure"](args, name, "double norm"), images, times, 1)[0]
    for name in benchmark["EMBEDDINGS"]
  }
  assert np.all(found["Fourier 16"][:, 0] > 10 * found["positional"][:, 0])
  np.testing.assert_allclose(found["Fourier 0.02"], found["positional"], rtol=0.3)
  np.testing.assert_allclose(found["Fourier 16"][:, 1], found["positional"][:, 1], rtol=0.3)
