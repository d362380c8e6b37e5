"""The comparison's runs: each method's page, stretched to the steps that its budget pays for."""

import pathlib
import runpy
import types

import pytest

from cmjax import build

BENCHMARK = runpy.run_path(
  str(pathlib.Path(__file__).parents[1] / "benchmarks" / "methods.py"), run_name="methods"
)
ARGS = types.SimpleNamespace(variant="", workdir=pathlib.Path("runs"), curve=0)


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
@pytest.mark.parametrize("method", BENCHMARK["METHODS"])
def test_a_method_stretched_to_any_length_still_builds(method, data):
  resolution = {"digits": 8, "fashion_mnist": 28}[data]
  for steps in (187, 605, 1213):
    config = BENCHMARK["configure"](ARGS, data, method, 0, steps)
    assert config.total_steps == steps and config.net.resolution == resolution
    net = build.network(config)
    assert callable(build.loss(config, net, (net, None)))
    if method in ("ct", "ict"):
      assert config.loss.curriculum.total_steps == steps
    if method == "ect":  # all stages, and nearly all steps in them
      used = config.loss.pairs.num_stages * config.loss.pairs.steps_per_stage
      assert 0.9 * steps < used <= steps


@pytest.fixture
def tuning(monkeypatch):
  """benchmarks/tuning.py, which stands beside the module that it imports."""
  folder = pathlib.Path(__file__).parents[1] / "benchmarks"
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
