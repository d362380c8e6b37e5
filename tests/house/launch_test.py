"""Every launch script says what it would do, and what it says is a program that does it."""

import ast
import contextlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import pytest
import yaml
from packaging import requirements, utils

from cmjax.base import cluster

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
# What a shell would take apart.
FLAGS = ["--config.net.channel_mult=(1, 2)", "--config.data.npz.path=it's $HOME"]
RUN = ["configs/cifar10_sct.py", "/mnt/runs/My_run.1", *FLAGS]
MAIN = ["--config=configs/cifar10_sct.py", "--workdir=/mnt/runs/My_run.1", "--tries=3", *FLAGS]


def launch(script, *args, **environment):
  command, path = ["bash", str(LAUNCH / script), *args], {"PATH": "/usr/bin:/bin"}
  return subprocess.run(
    command, capture_output=True, text=True, env=path | environment, cwd=LAUNCH.parent
  )


def arguments(script, program):
  """What a shell script gives to `program`, replaced by one that writes it down."""
  fake = f'{program}() {{ printf "%s\\0" "$@"; }}\n'
  done = subprocess.run(["bash", "-c", fake + script], capture_output=True, text=True, env={})
  return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", [*SCRIPTS, "skypilot.yaml"])
def test_a_script_is_small_and_parses(name):
  text = (LAUNCH / name).read_text()
  assert len(text.splitlines()) < 115 and "sudo" not in text
  if name.endswith(".sh"):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


USED = ["local.sh", "slurm.sh", "xpk.sh", "tpu_pod.sh", "jobset.sh", "restart.sh", "install.sh"]


@pytest.mark.parametrize("name", USED)
def test_without_arguments_a_script_says_its_usage(name):
  done = launch(name)
  assert done.returncode == 64 and name in done.stderr and not done.stdout


@pytest.mark.parametrize(
  ("cpus", "device"),
  [({"CPUS": "4"}, {"JAX_NUM_CPU_DEVICES": "4"}), ({}, {"CUDA_VISIBLE_DEVICES": 0})],
)
def test_local_processes_have_devices_of_their_own_and_one_coordinator(cpus, device):
  done = launch("local.sh", "--dry_run", *RUN, PROCESSES="2", PORT="1234", **cpus)
  assert done.returncode == 0, done.stderr
  for i, line in enumerate(done.stdout.splitlines()):
    words = arguments(line, "env")
    program = next(k for k, word in enumerate(words) if "=" not in word)
    given = dict(word.split("=", 1) for word in words[:program])
    assert given.pop("GLIBC_TUNABLES") == "glibc.malloc.hugetlb=1"
    assert given == {k: v or str(i) for k, v in device.items()} | (
      {"JAX_PLATFORMS": "cpu"} if cpus else {}
    )
    ends = ["--coordinator=localhost:1234", "--num_processes=2", f"--process_id={i}"]
    assert words[program + 1 :] == ["-m", "cmjax.main", *MAIN, *ends]
  assert i == 1
  (alone,) = launch("local.sh", "--dry_run", *RUN).stdout.splitlines()
  assert arguments(alone, "env")[2:] == ["-m", "cmjax.main", *MAIN]
  (chosen,) = launch("local.sh", "--dry_run", *RUN, GLIBC_TUNABLES="").stdout.splitlines()
  assert arguments(chosen, "env")[0] == "GLIBC_TUNABLES="
  assert launch("local.sh", "--dry_run", *RUN, PROCESSES="two").returncode == 64


@pytest.fixture(name="local")
def _local(tmp_path):
  """Starts local.sh with two processes in tmp_path, whose Python is a Bash program."""
  started = []

  def start(program, **environment):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\n{program}\n")
    python.chmod(0o755)
    process = subprocess.Popen(
      ["bash", str(LAUNCH / "local.sh"), *RUN],
      cwd=tmp_path,
      env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PROCESSES": "2", "CPUS": "1"} | environment,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_local_starts_all_again_after_75_and_ends_with_the_error_of_any(tmp_path, local):
  # The second time one process fails, and the other is lost, for want of the first.
  program = """
    i=${*: -1}; i=${i#--process_id=}
    echo "${*: -1}" >> "said$i"
    [ "$(wc -l < "said$i")" -eq 1 ] && exit 75
    [ "$i" -eq 1 ] && exit 3 || { /bin/sleep 0.2; kill -ABRT $$; }"""
  sleep = tmp_path / "sleep"  # which the script finds first
  sleep.write_text('#!/bin/bash\necho "$1" >> slept\n')
  sleep.chmod(0o755)
  process = local(program)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 3 and errors.count("starting again") == 1
  assert (tmp_path / "slept").read_text().split() == ["5"]
  for i in range(2):
    assert (tmp_path / f"said{i}").read_text().split() == [f"--process_id={i}"] * 2


@pytest.mark.parametrize("code", [69, 75, 129, 134, 137, 143, 255])
def test_what_was_interrupted_or_lost_is_started_again(code):
  assert launch("restart.sh", "--again", str(code)).returncode == 0


@pytest.mark.parametrize("code", [0, 1, 2, 64, 70, 126, 127, 128, 130])
def test_what_is_done_is_an_error_or_was_ended_by_hand_is_not(code):
  assert launch("restart.sh", "--again", str(code)).returncode == 1


@pytest.mark.parametrize(
  ("codes", "options", "expected"),
  [
    ("137 137 137 137", {}, (137, 3)),  # too soon, and in a row
    ("69 69 69 69", {"SOON": "0"}, (69, 3)),  # the others never came
    ("137 137 75 137 134 0", {}, (0, 6)),
    ("137 137 137 137 0", {"SOON": "0"}, (0, 5)),  # --tries of the run counts these
    ("137 137 0", {"TRIES": "1"}, (137, 1)),
    ("134 1 0", {}, (1, 2)),
  ],
)
def test_losses_in_a_row_are_counted(tmp_path, codes, options, expected):
  (tmp_path / "codes").write_text(codes.replace(" ", "\n"))
  program = """n=$(( $(cat n 2>/dev/null || echo 0) + 1 )); echo $n > n
    code=$(sed -n "${n}p" codes); [ "$code" -gt 128 ] && kill -$((code - 128)) $$; exit "$code\""""
  done = subprocess.run(
    ["bash", str(LAUNCH / "restart.sh"), "bash", "-c", program],
    cwd=tmp_path,
    env={"PATH": "/usr/bin:/bin", "PAUSE": "0"} | options,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, int((tmp_path / "n").read_text())) == expected, done.stderr
  assert ("not again" in done.stderr) == (expected[0] in (69, 137))


def test_a_signal_to_local_reaches_every_process_and_none_is_started_again(tmp_path, local):
  program = """
    i=${*: -1}
    trap 'echo saved > "saved${i#--process_id=}"; exit 75' TERM
    touch "ready${i#--process_id=}"
    while true; do sleep 0.05; done"""
  process = local(program)
  deadline = time.monotonic() + 60
  while len([*tmp_path.glob("ready*")]) < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
  process.terminate()
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 75 and "starting again" not in errors
  assert {path.name for path in tmp_path.glob("saved*")} == {"saved0", "saved1"}


def test_slurm_runs_one_process_per_gpu_with_cores_and_memory():
  options = dict(NODES="2", GPUS="4", CPUS="6", SLURM_OPTIONS="--partition=gpu --account=me")
  run = [RUN[0], "/mnt/my runs/100%", *RUN[2:]]
  done = launch("slurm.sh", "--dry_run", *run, **options)
  assert done.returncode == 0, done.stderr
  first, *lines = done.stdout.splitlines()
  command = shlex.split(first.removesuffix("<<'JOB'"))
  assert command[0] == "sbatch" and command[-2:] == ["--partition=gpu", "--account=me"]
  said = dict(word[2:].partition("=")[::2] for word in command[1:])
  assert said["nodes"] == "2" and said["ntasks-per-node"] == said["gpus-per-node"] == "4"
  assert said["cpus-per-task"] == "6" and said["mem"] == "0" and said["requeue"] == ""
  assert said["output"] == "/mnt/my runs/100%%/slurm-%j.log" and said["signal"] == "B:USR1@180"
  job = "\n".join(lines[:-1])
  subprocess.run(["bash", "-n", "-c", job], check=True)
  given = arguments(job, "bash")
  assert given[:2] == ["launch/restart.sh", "srun"] and "--cpus-per-task=6" in given
  program = [word.replace("/mnt/runs/My_run.1", "/mnt/my runs/100%") for word in MAIN]
  assert given[5:] == [".venv/bin/python", "-m", "cmjax.main", *program]


@pytest.mark.parametrize(
  ("number", "code", "requeued"),
  [("USR1", 75, True), ("USR1", 1, False), ("TERM", 75, False), (None, 75, False)],
)
def test_slurm_queues_a_run_again_that_saved_at_the_end_of_its_time(number, code, requeued):
  job = "\n".join(launch("slurm.sh", "--dry_run", *RUN).stdout.splitlines()[1:-1])
  run = f"trap 'exit {code}' TERM; while true; do sleep 0.05; done" if number else f"exit {code}"
  fakes = f"bash() {{ exec bash -c {shlex.quote(run)}; }}; SLURM_JOB_ID=17\n"
  fakes += 'scontrol() { echo "$@"; }\n'
  # To the job itself, when what it starts is there.
  send = f"(sleep 0.5; kill -{number} $$) &\n" if number else ""
  done = subprocess.run(
    ["bash", "-c", fakes + send + job], capture_output=True, text=True, timeout=30
  )
  assert done.returncode == code and done.stdout == ("requeue 17\n" if requeued else "")


@pytest.mark.parametrize(("device", "extra"), [("v5p-128", "tpu"), ("h100-80gb-8", "cuda")])
def test_xpk_restarts_what_was_interrupted(device, extra):
  run = [*RUN, 'a"b\\c$(HOME)é']
  done = launch("xpk.sh", "--dry_run", *run, CLUSTER="c", DEVICE=device, XPK_OPTIONS="--spot -x y")
  assert done.returncode == 0, done.stderr
  command = shlex.split(done.stdout)
  assert command[:3] == ["xpk", "workload", "create"] and command[-3:] == ["--spot", "-x", "y"]
  said = dict(word[2:].partition("=")[::2] for word in command if word.startswith("--"))
  assert said["workload"] == "my-run-1" and said["device-type"] == device
  assert said["restart-on-exit-codes"] == "69,75" and int(said["max-restarts"]) > 0
  assert ("num-nodes" in said, "num-slices" in said) == (extra == "cuda", extra == "tpu")
  install, program = said["command"].split(" && ")
  assert shlex.split(install)[-1] == f".[{extra},stores]"
  # xpk writes it into YAML as it is, between double quotes as well.
  assert yaml.safe_load(f'value: "{said["command"]}"') and "$(" not in said["command"]
  assert arguments(program.replace("exec python", "python"), "python")[2:] == [*MAIN, run[-1]]


@pytest.mark.parametrize("kind", ["TPU", "GPU"])
def test_a_jobset_has_a_pod_for_each_node_and_restarts_what_was_lost(kind):
  given = {"IMAGE": "image"} | (
    {"TPU": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4", "CHIPS": "4", "SLICES": "2"}
    if kind == "TPU"
    else {"GPU": "nvidia-h100-80gb", "CHIPS": "8", "NODES": "4"}
  )
  done = launch("jobset.sh", "--dry_run", *RUN, 'a"b\\c$(HOME)', **given)
  assert done.returncode == 0, done.stderr
  spec = yaml.safe_load(done.stdout)["spec"]
  (replicated,) = spec["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (
    2 if kind == "TPU" else 1, 4, 4, 0,
  )  # fmt: skip
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  assert container["command"] == ["python", "-m", "cmjax.main"]
  assert container["args"] == [*MAIN[:3], FLAGS[0], FLAGS[1], 'a"b\\c$$(HOME)']
  assert pod["terminationGracePeriodSeconds"] == 300 and pod["restartPolicy"] == "Never"
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
  for code in rule["onExitCodes"]["values"]:
    assert launch("restart.sh", "--again", str(code)).returncode == 0
  names = {one["name"] for one in container["env"]}
  (row,) = [row for row in cluster.ROWS if {"NNODES", "NODE_RANK"} <= {*row.marks}]
  assert names == (set() if kind == "TPU" else {*row.marks, "JAX_COORDINATOR_PORT"})


def test_a_tpu_pod_is_created_started_and_stopped():
  on_all = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"]

  def commands(*args, **environment):
    done = launch("tpu_pod.sh", "--dry_run", *args, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]

  (create,) = commands("create", "pod", "v5p-128", "v2-alpha-tpuv5", GCLOUD_OPTIONS="--spot")
  assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
  assert {"--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= {*create}
  pack, copy, install = commands("setup", "pod")
  assert (
    "git ls-files" in pack[2] and copy[-1] == "pod:cmjax.tar.gz" and "install.sh" in install[-1]
  )
  (start,) = commands("start", "pod", *RUN)
  assert start[:-1] == on_all
  program = start[-1].removeprefix("--command=").split("bash launch/restart.sh", 1)[1]
  shown = program.split("> run.log")[0].replace(".venv/bin/python", "python")
  assert arguments(shown, "python")[2:] == MAIN
  pack, copy, remove, create = commands("run", "pod", "v5p-128", "v2", RUN[0], "gs://b/r", *FLAGS)
  assert copy[-1] == "gs://b/r/launch/source.tar.gz" and remove[-1] == "gs://b/r/launch/code"
  assert "startup-script=" in create[-1] and "tpu_startup.sh" in create[-1]
  assert "queued-resources" in commands("delete", "pod")[0]
  assert launch("tpu_pod.sh", "--dry_run", "restart", "pod").returncode == 64
  assert launch("tpu_pod.sh", "--dry_run", "run", "pod", "t", "v", "c", "/local").returncode == 64


def test_ssh_to_a_pod_returns_when_the_run_has_been_started(tmp_path):
  """What is in the background must not hold the ends of ssh's pipes."""
  start = shlex.split(launch("tpu_pod.sh", "--dry_run", "start", "pod", *RUN).stdout)[-1]
  (tmp_path / "cmjax" / "launch").mkdir(parents=True)
  (tmp_path / "cmjax" / "launch" / "restart.sh").write_text('echo "$@"; exec sleep 30')
  began = time.monotonic()
  command = ["bash", "-c", start.removeprefix("--command=")]
  subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
  assert time.monotonic() - began < 5
  os.kill(int((tmp_path / "cmjax" / "run.pid").read_text()), signal.SIGKILL)


def test_skypilot_starts_one_process_per_node_and_again_after_75(tmp_path):
  task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
  assert task["resources"]["use_spot"] and "install.sh cuda" in task["setup"]
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/bin/bash\nprintf "%s\\n" "$@" >> said\n[ $(wc -l < said) -lt 12 ] && exit 75 || exit 3\n'
  )
  python.chmod(0o755)
  (tmp_path / "launch").symlink_to(LAUNCH)
  environment = {
    "PATH": "/usr/bin:/bin", "CONFIG": "configs/cifar10_sct.py", "FLAGS": "--config.seed=1",
    "WORKDIR": "gs://b/r", "PAUSE": "0",
  }  # fmt: skip
  done = subprocess.run(["bash", "-c", task["run"]], env=environment, cwd=tmp_path)
  assert done.returncode == 3  # what is no interruption is not started again
  once = [
    "-m", "cmjax.main", "--config=configs/cifar10_sct.py", "--workdir=gs://b/r", "--tries=3",
    "--config.seed=1",
  ]  # fmt: skip
  assert (tmp_path / "said").read_text().split() == once * 2


def pins(python):
  """{package: version} of the lock for one Python on Linux."""
  lines = (LAUNCH / "constraints.txt").read_text().splitlines()
  parsed = [requirements.Requirement(line) for line in lines]
  where = {
    "python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux",
    "implementation_name": "cpython", "platform_python_implementation": "CPython",
  }  # fmt: skip
  valid = [pin for pin in parsed if pin.marker is None or pin.marker.evaluate(where)]
  found = {utils.canonicalize_name(pin.name): str(pin.specifier) for pin in valid}
  assert len(found) == len(valid)  # of each package one version
  assert all(re.fullmatch(r"==[\w.]+", version) for version in found.values()), found
  return {name: version.removeprefix("==") for name, version in found.items()}


def asked_for():
  """What setup.py asks for in the lock's extras: those that `make lock` names."""
  values = {}
  for node in ast.parse((LAUNCH.parent / "setup.py").read_text()).body:
    if isinstance(node, ast.Assign) and node.targets[0].id in ("CORE", "EXTRAS"):
      values[node.targets[0].id] = ast.literal_eval(node.value)
  extras = re.findall(r"--extra (\w+)", (LAUNCH.parent / "Makefile").read_text())
  assert {"tpu", "cuda", "stores"} <= set(extras)
  lines = values["CORE"] + [line for extra in extras for line in values["EXTRAS"][extra]]
  return [requirements.Requirement(line) for line in lines]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_every_host_gets_the_same_versions(python):
  """One version of all that setup.py asks for, and of what JAX loads beside itself."""
  locked = pins(python)
  for asked in asked_for():
    assert asked.specifier.contains(locked[utils.canonicalize_name(asked.name)]), str(asked)
  pair = {locked[name] for name in ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt")}
  assert len(pair) == 1 and "libtpu" in locked
