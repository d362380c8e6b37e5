"""Every launch script says what it would do, and what it says is a program that does it."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
# What a shell would take apart.
FLAGS = ["--config.net.channel_mult=(1, 2)", "--config.data.npz.path=it's $HOME"]
RUN = ["configs/cifar10_sct.py", "/mnt/runs/My_run.1", *FLAGS]
MAIN = ["--config=configs/cifar10_sct.py", "--workdir=/mnt/runs/My_run.1", *FLAGS]


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
  assert len(text.splitlines()) < 60 and "sudo" not in text
  if name.endswith(".sh"):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


@pytest.mark.parametrize("name", ["local.sh", "slurm.sh", "xpk.sh", "tpu_pod.sh"])
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

  def start(program):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\n{program}\n")
    python.chmod(0o755)
    process = subprocess.Popen(
      ["bash", str(LAUNCH / "local.sh"), *RUN],
      cwd=tmp_path,
      env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PROCESSES": "2", "CPUS": "1"},
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
  # The second time one process fails, and the other, as it does then, for want of the first.
  program = """
    i=${*: -1}; i=${i#--process_id=}
    echo "${*: -1}" >> "said$i"
    [ "$(wc -l < "said$i")" -eq 1 ] && exit 75
    [ "$i" -eq 0 ] && exit 3 || { /bin/sleep 0.2; exit 75; }"""
  sleep = tmp_path / "sleep"  # which the script finds first
  sleep.write_text('#!/bin/bash\necho "$1" >> slept\n')
  sleep.chmod(0o755)
  process = local(program)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 3 and errors.count("starting again") == 1
  assert (tmp_path / "slept").read_text().split() == ["5"]
  for i in range(2):
    assert (tmp_path / f"said{i}").read_text().split() == [f"--process_id={i}"] * 2


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


def test_slurm_runs_one_process_per_gpu_and_queues_an_interrupted_run_again():
  options = dict(NODES="2", GPUS="4", SLURM_OPTIONS="--partition=gpu --account=me")
  done = launch("slurm.sh", "--dry_run", *RUN, **options)
  assert done.returncode == 0, done.stderr
  first, *lines = done.stdout.splitlines()
  assert first == "sbatch --partition=gpu --account=me <<'JOB'" and lines[-1] == "JOB"
  said = dict(line[len("#SBATCH --") :].partition("=")[::2] for line in lines if "#SBATCH" in line)
  assert said["nodes"] == "2" and said["ntasks-per-node"] == said["gpus-per-node"] == "4"
  assert said["signal"] == "TERM@180" and said["requeue"] == ""
  job = "\n".join(lines[:-1])
  subprocess.run(["bash", "-n", "-c", job], check=True)
  assert arguments(job, "srun") == [".venv/bin/python", "-m", "cmjax.main", *MAIN]
  for code, requeued in ((75, True), (1, False), (0, False)):
    fakes = f'srun() {{ return {code}; }}; scontrol() {{ echo "$@"; }}; SLURM_JOB_ID=17\n'
    run = subprocess.run(["bash", "-c", fakes + job], capture_output=True, text=True)
    assert run.returncode == code and run.stdout == ("requeue 17\n" if requeued else "")


@pytest.mark.parametrize(("device", "extra"), [("v5p-128", "tpu"), ("h100-80gb-8", "cuda")])
def test_xpk_restarts_what_exits_with_75(device, extra):
  done = launch("xpk.sh", "--dry_run", *RUN, CLUSTER="c", DEVICE=device, XPK_OPTIONS="--spot -x y")
  assert done.returncode == 0, done.stderr
  command = shlex.split(done.stdout)
  assert command[:3] == ["xpk", "workload", "create"] and command[-3:] == ["--spot", "-x", "y"]
  said = dict(word[2:].partition("=")[::2] for word in command if word.startswith("--"))
  assert said["workload"] == "my-run-1" and said["device-type"] == device
  assert said["restart-on-exit-codes"] == "75" and int(said["max-restarts"]) > 0
  install, program = said["command"].split(" && ")
  assert shlex.split(install)[-1] == f".[{extra}]"
  assert shlex.split(program) == ["exec", "python", "-m", "cmjax.main", *MAIN]


def test_a_tpu_pod_is_created_started_and_stopped():
  on_all = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"]

  def commands(*args, **environment):
    done = launch("tpu_pod.sh", "--dry_run", *args, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]

  (create,) = commands("create", "pod", "v5p-128", "v2-alpha-tpuv5", GCLOUD_OPTIONS="--spot")
  assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
  assert {"--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= {*create}
  (start,) = commands("start", "pod", *RUN)
  assert start[:-1] == on_all
  program = start[-1].removeprefix("--command=").replace("nohup launch/local.sh", "local")
  shown = program.replace("cd cmjax && ", "").split(" > ")[0].split("> ~")[0]
  assert arguments(shown, "local") == RUN
  assert commands("stop", "pod")[0][-1] == "--command=pkill -TERM -f launch/local.sh"
  assert "queued-resources" in commands("delete", "pod")[0]
  assert launch("tpu_pod.sh", "--dry_run", "restart", "pod").returncode == 64


def test_skypilot_starts_one_process_per_node_and_again_after_75(tmp_path):
  task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
  assert task["resources"]["use_spot"] and "/runs" in task["file_mounts"]
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/bin/bash\nprintf "%s\\n" "$@" >> said\n[ $(wc -l < said) -lt 12 ] && exit 75 || exit 3\n'
  )
  python.chmod(0o755)
  environment = {
    "PATH": "/usr/bin:/bin", "CONFIG": "configs/cifar10_sct.py", "FLAGS": "--config.seed=1",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
  }  # fmt: skip
  script = "sleep() { :; }\n" + task["run"]
  done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path)
  assert done.returncode == 3  # what is no interruption is not started again
  once = [
    "-m", "cmjax.main", "--config=configs/cifar10_sct.py", "--workdir=/runs/cifar10_sct",
    "--coordinator=10.0.0.1:9876", "--num_processes=2", "--process_id=1", "--config.seed=1",
  ]  # fmt: skip
  assert (tmp_path / "said").read_text().split() == once * 2
