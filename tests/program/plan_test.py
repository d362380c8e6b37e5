"""What is compiled ahead of time is the step that trains, and what is said of it is so."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.program import compiled_step, costs, plan
from helpers import tiny

pytestmark = pytest.mark.devices
MESH = sharding.make_mesh(2, 4, devices=jax.local_devices())
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_planned_step_is_the_one_that_trains():
  given = tiny.experiment_of(**{"net.width": 128})  # wide enough to be split
  tx, key = experiment.transformation(given), jax.random.key(3)
  frozen = {"teacher": None, "lpips": None}
  state, _ = sharding.create(experiment.state_init(given), MESH, key)
  images = np.random.default_rng(0).normal(size=(given.run.batch_size, 2)).astype("f")
  batch = sharding.global_batch({"image": images}, MESH)
  key = jax.device_put(key, sharding.replicated(MESH))
  expected, _ = jax.jit(compiled_step.make_step_fn(given, tx))(state, batch, key, frozen)
  expected = jax.device_get(expected)
  compiled = plan.compile_step(given, MESH)
  assert compiled.memory_analysis().argument_size_in_bytes > 0
  got, _ = compiled(state, batch, key, frozen)  # donates the state: last
  assert "fsdp" in got.params["net"]["blocks"]["block0"]["fc0"]["kernel"].sharding.spec
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), got, expected)


def test_a_plan_has_the_teacher_and_the_labels_that_a_run_would_have():
  config = tiny.config(**{"teacher.workdir": "somewhere"}).unlock()
  config.net.update(num_classes=3, guidance=True)
  config.loss.update(name="scd", guidance=(1.0, 2.0))
  given = experiment.parse(config)
  state, batch, _, frozen = plan.abstract_arguments(given, MESH)
  assert batch["label"].shape == (16,) and batch["label"].dtype == jnp.int32
  assert batch["image"].sharding == sharding.batch_sharding(MESH)
  assert "map_guidance" in state.params["net"] and "map_guidance" not in frozen["teacher"]
  assert all(x.sharding.mesh == MESH for x in jax.tree.leaves((state, frozen)))
  plan.compile_step(given, MESH)


def test_the_plan_of_the_devices_here_is_that_of_the_run():
  given = tiny.experiment_of(**{"net.width": 128, "mesh.fsdp": 4})
  report = plan.plan(given, "local")
  params = jax.eval_shape(given.network.init, jax.random.key(0))
  number = sum(x.size for x in jax.tree.leaves(params))
  assert report["parameters"] == {"network": number, "teacher": 0}
  assert report["mesh"] == {"data": 2, "fsdp": 4} and report["chips"] == 8
  [attempt] = report["attempts"]
  assert attempt["fits"] and attempt["changes"] == {} and attempt["seconds"] > 0
  assert attempt["arguments"] == report["memory"]["arguments"]
  assert report["memory"]["peak"] >= attempt["arguments"] + report["memory"]["temporary"] > 0
  assert report["run"] == {"steps": 12, "batch_size": 16, "images": 192}  # CPUs have no peaks
  assert report["step"]["flops"].keys() == {"float32"} and report["step"]["loops"] == 1
  # The gradient is reduced in any case, weights are gathered since they are split.
  collectives = report["step"]["collectives"]
  assert {"all-reduce", "all-gather"} <= collectives.keys()
  assert all(t["number"] and 0 < t["sent"] < 2 * t["bytes"] for t in collectives.values())
  text = plan.table(report)
  assert f"parameters    {number / 1e6:.2f} M\n" in text and "data 2, fsdp 4" in text
  assert text.endswith("It fits as it is.")


@pytest.mark.slow
def test_what_does_not_fit_is_tried_in_other_ways_until_it_does(monkeypatch):
  given = tiny.experiment_of(**{"net.width": 256})
  sizes = [argument_bytes(given, fsdp) for fsdp in (1, 2)]
  small = costs.CHIPS["h100"]._replace(memory=0.5 * sum(sizes))
  monkeypatch.setitem(costs.CHIPS, "h100", small)
  report = plan.plan(given, "h100:4")
  tried = [(a["changes"], a["peak"] is not None) for a in report["attempts"]]
  # An MLP cannot compute anything again; its arguments alone are too much for a chip.
  split = {"mesh.data": -1, "mesh.fsdp": 2}
  assert tried[:2] == [({}, False), (split, True)] and report["fits"]
  assert report["changes"] == report["attempts"][-1]["changes"] and report["mesh"]["fsdp"] >= 2
  step, run = report["step"], report["run"]
  assert step["seconds"] == max(step["roofline"].values()) > 0
  assert step["estimate"].startswith("roofline, bound by ")
  assert run["hours"] == pytest.approx(step["seconds"] * 12 / 3600)
  assert run["chip_hours"] == pytest.approx(4 * run["hours"])
  text = plan.table(report)
  assert "an analytic estimate" in text and "not tried" in text
  assert text.splitlines()[-1].startswith("It fits with --config.mesh.data=-1 --config.mesh.fsdp=")


def argument_bytes(given, fsdp):
  aim = plan.Target(jax.devices()[:4], costs.CHIPS["h100"], "", {})
  return plan.argument_bytes(plan.changed(given, {"mesh.fsdp": fsdp}), aim)


def test_remat_comes_first_then_microbatches_then_more_shards():
  config = tiny.config(**{"batch_size": 64}).unlock()
  config.net = dict(
    name="dit", resolution=8, in_channels=1, patch=2, size=None, width=32, depth=1, num_heads=2,
    dtype="float32",
  )  # fmt: skip
  aim = plan.Target(jax.devices()[:4], costs.CHIPS["v5e"], "", {})
  remat = {"net.remat": True}
  shards = [{"mesh.data": -1, "mesh.fsdp": n} for n in (2, 4)]
  candidates = lambda aim: list(plan.candidates(experiment.parse(config), aim))
  del config.microbatch  # of an older page
  assert candidates(aim) == [{}, remat, *[remat | s for s in shards]]
  config.microbatch = 32
  halves = [remat | {"microbatch": n} for n in (16, 8, 4)]
  expected = [{}, remat, *halves, *[halves[-1] | s for s in shards]]
  assert candidates(aim) == expected
  full = aim._replace(chip=aim.chip._replace(memory=1e3))  # less than the state
  assert candidates(full) == [{}, remat, *[remat | s for s in shards]]
  config.net.remat, config.mesh.fsdp = True, 4
  assert candidates(aim) == [{}, *[{"microbatch": n} for n in (16, 8, 4)]]


def test_a_program_that_the_compiler_refuses_does_not_fit(monkeypatch):
  message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 90.00G of 79.00G hbm."

  def refuse(*args):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(plan, "trace_step", lambda *args: None)
  monkeypatch.setattr(compiled_step, "compile_traced", refuse)
  report = plan.plan(tiny.experiment_of(), "h100:2")
  assert [a["peak"] for a in report["attempts"]] == [90 * 2**30] * 5
  assert report["fits"] is False and "step" not in report
  assert "none of these ways" in plan.table(report)
  message = "INTERNAL: something else"
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    plan.plan(tiny.experiment_of(), "h100:2")


def test_a_topology_that_cannot_be_is_one_line_with_advice(monkeypatch):
  def refuse(**kwargs):
    raise RuntimeError("libtpu.so not found\nand much more")

  monkeypatch.setattr(plan.topologies, "get_topology_desc", refuse)
  with pytest.raises(ValueError) as error:
    plan.target("v5e:2x2")
  message = str(error.value)
  assert "'v5e:2x2'" in message and "libtpu.so not found" in message and "\n" not in message
  assert "cmjax[plan]" in message and "v5p:4x4x4" in message


@pytest.mark.parametrize("topology", ["v9:2x2", "v5p", "h100", "h100:0", "h100:2x2", "locale", ""])
def test_an_unknown_topology_says_which_there_are(topology):
  with pytest.raises(ValueError, match="Choose local; TPUs .v4, v5e, v5p, v6e.*h100:8"):
    plan.target(topology)


def test_chips_that_do_not_divide_the_batch_or_are_too_many_are_refused():
  with pytest.raises(ValueError, match="batch_size=12 must be a multiple of the 8 .* Nearest: 16"):
    plan.plan(tiny.experiment_of(**{"batch_size": 12}), "h100:8")
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    plan.plan(tiny.experiment_of(**{"mesh.fsdp": 3}), "h100:8")
  with pytest.raises(ValueError, match="started with 8 CPU devices, and 16 are asked for"):
    plan.target("h100:16")


def test_the_devices_here_are_known_by_their_names():
  class Device:
    def __init__(self, platform, device_kind):
      self.platform, self.device_kind = platform, device_kind

    def memory_stats(self):
      return {"bytes_limit": 12345} if "A100" in self.device_kind else None

  names = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200",
    "NVIDIA A100 80GB PCIe": "a100", "NVIDIA A100-PCIE-40GB": "a100", "A100-SXM4-80GB": "a100",
    "NVIDIA L4": "l4", "NVIDIA GeForce RTX 4090": "4090", "TPU v5e": "v5e", "TPU v6e": "v6e",
  }  # fmt: skip
  found = {name: plan.local_chip([Device("tpu", name)]) for name in names}
  assert {name: chip.kind for name, chip in found.items()} == names
  assert found["NVIDIA A100-SXM4-40GB"].memory == 12345 and found["TPU v4"].memory == 32e9
  for other in (
    *("Tesla T4", "NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL"),
    *("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GH200 480GB"),
    *("NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "TPU v4 lite", "TPU v3"),
  ):
    assert plan.local_chip([Device("gpu", other)])[2:4] == (0.0, 0.0), other
  host = plan.local_chip([Device("cpu", "cpu")]).memory
  assert 0 < host and plan.local_chip([Device("cpu", "cpu")] * 4).memory == host / 4


@pytest.mark.slow
def test_the_program_prints_the_table_and_writes_the_same_numbers(tmp_path):
  command = [sys.executable, "-m", "cmjax.main", "--mode=plan", "--config=tests/helpers/tiny.py"]
  command += ["--topology=h100:4", f"--workdir={tmp_path / 'run'}", "--config.batch_size=32"]
  command += [f"--compile_cache={tmp_path / 'cache'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / "run" / "plan.json").read_text())
  assert done.stdout.startswith(plan.table(report)) and report["chips"] == 4
  assert report["run"]["images"] == 12 * 32
  assert not (tmp_path / "cache").exists()  # programs for TPUs that are not there fail to load


def used_memory(*args):
  command = [sys.executable, "tests/helpers/step_memory_used.py", *args]
  # What is freed goes back to the system: else glibc keeps a part of it, and that is counted.
  env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
  "args",
  [
    ("tests/helpers/tiny.py", "batch_size=65536", "net.width=64"),
    (
      "configs/digits_sct.py",
      "batch_size=2048",
      "net.channel_mult=(1,)",
      "net.attn_resolutions=()",
    ),
  ],
)
def test_a_step_takes_the_memory_that_was_predicted_within_a_tenth(args):
  memory = used_memory(*args)
  assert memory["predicted"] > 1e8  # so much that the rest of the process does not matter
  assert memory["used"] == pytest.approx(memory["predicted"], rel=0.1)
