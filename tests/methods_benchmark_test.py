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
