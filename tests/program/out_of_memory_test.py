"""Where memory is not enough, one message says what was asked for, and what would fit."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from cmjax.base import device_memory
from cmjax.program import costs, out_of_memory, plan
from helpers import in_process, tiny

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30
# XLA's own words, by platform and moment -> bytes asked for, and free or there where they say so.
SAID = {
  "CPU": ("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.", [16 * GIB]),
  "GPU, running": (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\n"
    "BufferAssignment OOM Debugging.\nBufferAssignment stats:\n"
    "             parameter allocation:  372.76MiB\n",
    [4770354232],
  ),
  "GPU, allocating": (
    "RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on device ordinal 0",
    [176 * 2**20],
  ),
  "GPU, allocating more": (
    "RESOURCE_EXHAUSTED: Failed to allocate request for 6.27GiB (6727663616B) on device ordinal 0",
    [6.27 * GIB],
  ),
  "GPU, its allocator": (
    "RESOURCE_EXHAUSTED: Allocator (GPU_0_bfc) ran out of memory trying to allocate 3.37GiB with "
    "freed_by_count=0.",
    [3.37 * GIB],
  ),
  "TPU, compiling": (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 21.95G of 15.48G hbm. Exceeded hbm capacity by 6.47G.\n\nTotal hbm usage >= 22.47G:\n"
    "    reserved        530.00M\n    program          21.95G\n    arguments            0B\n",
    [21.95 * GIB, 15.48 * GIB],
  ),
  "TPU, allocating": (
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 129.50M. That was "
    "not possible. There are 78.17M free.; (0x0x0_HBM0)",
    [129.5 * 2**20, 78.17 * 2**20],
  ),
  "TPU, loading": (
    "RESOURCE_EXHAUSTED: Attempting to reserve 6.48G at the bottom of memory. That was not "
    "possible. There are 6.78G free, 0B reserved, and 3.33G reservable.",
    [6.48 * GIB, 6.78 * GIB],
  ),
}


class Device:
  """An accelerator that is not there."""

  platform, device_kind = "gpu", "NVIDIA L4"

  def memory_stats(self):
    return {"bytes_limit": 18 * GIB, "bytes_in_use": 17 * GIB}


def message(exp, error, doing="steps"):
  """What is said of an error while something goes on."""
  with pytest.raises(device_memory.OutOfMemory) as raised:
    with out_of_memory.explained(exp, lambda: doing):
      raise error
  assert "\n" not in str(raised.value) and raised.value.__cause__ is error
  return str(raised.value)


@pytest.mark.parametrize("name", SAID)
def test_every_platforms_words_are_understood(name):
  text, expected = SAID[name]
  assert device_memory.asked(text) == pytest.approx(expected)
  said = message(tiny.experiment_of(), jax.errors.JaxRuntimeError(text))
  assert said.startswith("A train step needs more memory than this machine has: ")
  assert " were asked for" in said and ("were free" in said) == (len(expected) > 1)


def test_words_that_nobody_knows_are_passed_on():
  text = "RESOURCE_EXHAUSTED: the moon is full\nand more"
  assert "(RESOURCE_EXHAUSTED: the moon is full)" in message(
    tiny.experiment_of(), jax.errors.JaxRuntimeError(text)
  )


VMEM = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space vmem. "
  "Used 32.42M of 16.00M vmem. Exceeded vmem capacity by 16.42M"
)
GRPC = "RESOURCE_EXHAUSTED: Received message larger than max (6177543 vs. 4194304)"


@pytest.mark.parametrize(
  "error",
  [
    *map(jax.errors.JaxRuntimeError, ("INTERNAL: no", VMEM, GRPC)),
    ValueError("RESOURCE_EXHAUSTED"),
  ],
)
def test_other_errors_stay_as_they_are(error):
  with pytest.raises(type(error)) as raised:
    with out_of_memory.explained(tiny.experiment_of(), lambda: "steps"):
      raise error
  assert raised.value is error


def test_on_a_cpu_the_next_smaller_is_named_and_not_said_to_fit():
  error = jax.errors.JaxRuntimeError(SAID["CPU"][0])
  said = message(tiny.experiment_of(), error)
  assert "Try --config.microbatch=8, which needs less; whether it fits is not known." in said
  assert "By the plan" not in said and "cmjax plan --topology=" in said
  said = message(tiny.experiment_of(microbatch=4), error)
  assert "--config.microbatch=2" in said
  said = message(tiny.experiment_of(batch_size=1), error)
  assert "Take more devices, a smaller batch_size or a smaller network." in said
  with_remat = tiny.experiment_of()
  options = {**with_remat.network.options, "remat": False}
  with_remat = with_remat._replace(network=with_remat.network._replace(options=options))
  assert "Try --config.net.remat=True" in message(with_remat, error)


@pytest.mark.devices
def test_a_state_that_does_not_fit_is_split_and_not_its_batch():
  error = jax.errors.JaxRuntimeError(SAID["CPU"][0])
  said = message(tiny.experiment_of(), error, "start")
  assert "Try --config.mesh.data=-1 --config.mesh.fsdp=2, which needs less" in said
  whole = tiny.experiment_of(**{"mesh.data": 1, "mesh.fsdp": 8})
  assert "Take more devices" in message(whole, error, "start")


def test_what_an_evaluation_asks_for_is_its_own_batch():
  said = message(
    tiny.experiment_of(), jax.errors.JaxRuntimeError(SAID["GPU, running"][0]), "evaluations"
  )
  assert said.startswith("An evaluation needs") and "--config.evals.swd.batch_size=16" in said


def test_where_a_plan_can_be_made_it_says_what_fits(monkeypatch):
  """The plan's own code, with a chip whose memory holds the arguments and little beside them."""
  monkeypatch.setattr(out_of_memory, "experiment_devices", lambda exp: [Device()])
  exp = tiny.experiment_of(batch_size=1024, **{"net.width": 64})
  error = jax.errors.JaxRuntimeError(SAID["GPU, running"][0])
  whole = plan.plan(exp, "local")["memory"]["peak"]

  def with_memory(size):
    chip = costs.Chip("small", size, 0.0, 0.0, 0.0)
    monkeypatch.setattr(plan, "local_chip", lambda devices: chip)
    return message(exp, error)

  said = with_memory(0.8 * whole)
  assert "NVIDIA L4 has (18 GiB for JAX, 17 GiB of them in use): 4.44 GiB were asked for" in said
  assert "By the plan: It fits with --config.microbatch=" in said
  assert "By the plan the step alone fits" in with_memory(2 * whole)
  assert "It fits in none of these ways" in with_memory(1000)


def test_a_plan_that_cannot_be_made_claims_nothing(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: again")

  monkeypatch.setattr(out_of_memory, "experiment_devices", lambda exp: [Device()])
  monkeypatch.setattr(plan, "plan", refuse)
  said = message(tiny.experiment_of(), jax.errors.JaxRuntimeError(SAID["GPU, running"][0]))
  assert "whether it fits is not known. No plan could be made here." in said


def test_the_program_says_it_in_one_line(capsys, tmp_path, monkeypatch):
  from cmjax.program import compiled_step

  def refuse(*_):
    raise jax.errors.JaxRuntimeError(SAID["CPU"][0])

  monkeypatch.setattr(compiled_step, "compile_step", refuse)
  config = f"--config={ROOT / 'tests' / 'helpers' / 'tiny.py'}"
  code, _, err = in_process.answer(capsys, lambda: in_process.mode(config, f"--workdir={tmp_path}"))
  said = [line for line in err.splitlines() if line.startswith("cmjax: ")]
  assert code == 1 and "Traceback" not in err
  assert said[0].startswith("cmjax: Compiling the train step needs more memory than this machine")


@pytest.mark.slow
def test_a_real_lack_of_memory_on_a_cpu(tmp_path):
  """A batch for which this process may not take the memory."""
  code = (
    "import resource, sys\n"
    # With its asynchronous dispatch JAX waits for ever for what could not be allocated.
    "import jax; jax.config.update('jax_cpu_enable_async_dispatch', False)\n"
    "jax.block_until_ready(jax.numpy.ones(3))\n"
    "sys.path[:0] = ['tests']\n"
    "from helpers import tiny\n"
    "from cmjax.program import train\n"
    "exp = tiny.experiment_of(evals={}, **{'net.width': 8192, 'net.depth': 2})\n"
    "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
    "train.train(exp, sys.argv[1])\n"
  )
  ran = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    cwd=ROOT, capture_output=True, text=True, timeout=100,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"},
  )  # fmt: skip
  last = ran.stderr.strip().splitlines()[-1]
  assert "OutOfMemory: Preparing the run needs more memory than this machine has" in last, last
  assert (
    "0.25 GiB were asked for. Take more devices, a smaller batch_size or a smaller netw" in last
  )
