"""Tools of clusters that run what they are told as processes of this machine, with the real names.

python tests/helpers/stub_cluster.py TOOL ARGS; $STUBS is a folder for what they remember. A host is
a process; what a scheduler does when one ends, it does: kill the others, restart, queue again.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

STUBS = pathlib.Path(os.environ["STUBS"])
HOSTS = int(os.environ.get("STUB_HOSTS", "2"))
CLUSTER = ("SLURM_", "SKYPILOT_", "MASTER_", "JAX_COORDINATOR", "NNODES", "NODE_RANK", "WORLD_SIZE")


def start(command, **variables):
  """A process of a host, with its variables in the place of those of other clusters."""
  env = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
  return subprocess.Popen(command, env=env | {k: str(v) for k, v in variables.items()})


def code_of(process):
  """Its exit code as a shell has it."""
  code = process.wait()
  return code if code >= 0 else 128 - code


def forward(processes):
  """Hands signals on to the processes."""

  def hand_on(number, frame):
    for process in processes:
      if process.poll() is None:
        process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, hand_on)


def options(args):
  """{name: value} of --name=value, as far as the first that is no option; and the rest."""
  found = {}
  while args and args[0].startswith("-"):
    name, _, value = args[0].lstrip("-").partition("=")
    found[name], args = value, args[1:]
  return found, args


def srun(args):
  count, tasks = int(os.environ["SLURM_NTASKS"]), []
  job, (_, command) = os.environ["SLURM_JOB_ID"], options(args)
  forward(tasks)
  for i in range(count):
    tasks.append(
      start(
        command, SLURM_JOB_ID=job, SLURM_NTASKS=count, SLURM_STEP_NUM_TASKS=count,
        SLURM_STEP_NODELIST="localhost", SLURM_PROCID=i, SLURM_LOCALID=i, SLURM_NODEID=0,
        SLURM_STEP_TASKS_PER_NODE=count,
      )
    )  # fmt: skip
  return max(map(code_of, tasks))


def sbatch(args):
  """Submits, and stays in the place of the scheduler. SIGUSR1 to it is the end of the time."""
  said, _ = options(args)
  script, job = STUBS / "job.sh", str(random.randrange(1, 100_000))
  (STUBS / "scheduler.pid").write_text(str(os.getpid()))
  script.write_text(sys.stdin.read())
  count = int(said["nodes"]) * int(said["ntasks-per-node"])
  log, running = said["output"].replace("%j", job).replace("%%", "%"), []
  forward(running)
  while True:
    with open(log, "a") as out:
      env = os.environ | {"SLURM_JOB_ID": job, "SLURM_NTASKS": str(count)}
      env |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
      running[:] = [subprocess.Popen(["bash", script], env=env, stdout=out, stderr=out)]
      code = code_of(running[0])
    if not (STUBS / f"requeue.{job}").exists():
      return code
    (STUBS / f"requeue.{job}").unlink()


def scontrol(args):
  assert args[0] == "requeue", args
  (STUBS / f"requeue.{args[1]}").touch()
  return 0


def job_set(pods, restarts, most):
  """Runs pods [(command, variables)] until all end well; the code of the first that did not."""
  running, told = [], []
  forward(running)
  signal.signal(signal.SIGTERM, lambda *_: told.append(1) or [p.terminate() for p in running])
  for _ in range(most + 1):
    running[:] = [start(command, **variables) for command, variables in pods()]
    while (bad := next((p for p in running if p.poll()), None)) is None:
      if all(p.poll() == 0 for p in running):
        return 0
      time.sleep(0.1)
    code = code_of(bad)
    for pod in running:  # a Job fails with the first of its pods, and the others are deleted
      pod.terminate() if pod.poll() is None else None
    for pod in running:
      try:
        pod.wait(150)
      except subprocess.TimeoutExpired:
        pod.kill()
        pod.wait()
    if told or not restarts(code):
      return code
  return code


def xpk(args):
  said, _ = options(args[2:])
  codes = {int(code) for code in said["restart-on-exit-codes"].split(",")}
  nodes, port = int(said["num-nodes"]), random.randrange(20_000, 30_000)
  variables = lambda i: dict(
    NNODES=nodes, NODE_RANK=i, JAX_COORDINATOR_ADDRESS="localhost", JAX_COORDINATOR_PORT=port,
    USE_GPUDIRECT="tcpx", GPUS_PER_NODE=8, JOBSET_NAME=said["workload"], JOB_COMPLETION_INDEX=i,
    KUBERNETES_SERVICE_HOST="10.0.0.1", COMMAND=said["command"],
  )  # fmt: skip
  # As xpk's container has it.
  shell = (
    "_sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM; "
    f"({said['command']}) & PID=$!; while kill -0 $PID 2>/dev/null; do sleep 1; done; wait $PID; "
    "exit $?"
  )
  pods = lambda: [(["bash", "-c", shell], variables(i)) for i in range(nodes)]
  restarts = lambda code: code == 42 or code >= 127 or code in codes
  return job_set(pods, restarts, int(said["max-restarts"]))


def kubectl(args):
  import yaml

  assert args == ["apply", "-f", "-"], args
  spec = yaml.safe_load(sys.stdin.read())["spec"]
  (job,) = (one["template"]["spec"] for one in spec["replicatedJobs"])
  (container,) = job["template"]["spec"]["containers"]
  (rule,) = job["podFailurePolicy"]["rules"]
  port = str(random.randrange(20_000, 30_000))  # of several tests on one machine
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

  def variables(i):
    found = {"JOB_COMPLETION_INDEX": i, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    for one in container["env"]:
      if "value" not in one:
        assert one["valueFrom"]["fieldRef"]["fieldPath"] == index
      found[one["name"]] = one.get("value", i)
    return found | {"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_COORDINATOR_PORT": port}

  command = [word.replace("$$(", "$(") for word in (*container["command"], *container["args"])]
  pods = lambda: [(command, variables(i)) for i in range(job["completions"])]
  restarts = lambda code: code in rule["onExitCodes"]["values"]
  return job_set(pods, restarts, spec["failurePolicy"]["maxRestarts"])


def sky(args):
  import yaml

  task, nodes, given = yaml.safe_load(pathlib.Path(args[2]).read_text()), HOSTS, args[3:]
  env = {k: str(v) for k, v in task["envs"].items()}
  while given:
    name, value, *given = given
    if name == "--env":
      env |= [value.split("=", 1)]
    if name == "--num-nodes":
      nodes = int(value)
  port, hosts = random.randrange(20_000, 30_000), []
  forward(hosts)
  for i in range(nodes):
    command = ["bash", "-c", task["run"]]
    hosts.append(
      start(
        command, **env, SKYPILOT_NODE_IPS="\n".join(["127.0.0.1"] * nodes), SKYPILOT_NODE_RANK=i,
        SKYPILOT_NUM_NODES=nodes, JAX_COORDINATOR_PORT=port,
      )
    )  # fmt: skip
  return max(map(code_of, hosts))


def local(path):
  return STUBS / path.removeprefix("gs://")


def gcloud(args):
  if args[0] == "storage":
    return storage(args[1], args[2:])
  kind, verb, name, rest = args[2], args[3], args[4], args[5:]
  (STUBS / "calls").open("a").write(json.dumps(args) + "\n")
  return {"queued-resources": queued_resources, "tpu-vm": tpu_vm}[kind](verb, name, rest)


def storage(verb, args):
  if verb == "cp":
    source, target = args
    if target == "-":
      sys.stdout.buffer.write(local(source).read_bytes())
      return 0
    local(target).parent.mkdir(parents=True, exist_ok=True)
    data = sys.stdin.buffer.read() if source == "-" else pathlib.Path(source).read_bytes()
    local(target).write_bytes(data)
    return 0
  if not local(args[0]).exists():
    return 1
  if verb == "rm":
    local(args[0]).unlink()
  if verb == "cat":
    sys.stdout.write(local(args[0]).read_text())
  return 0


def queued_resources(verb, name, args):
  state = STUBS / f"{name}.state"
  if verb == "describe":
    if not state.exists():
      return 1
    sys.stdout.write(state.read_text())
  if verb == "create":
    assert not state.exists()
    state.write_text("ACTIVE")
    said, _ = options(args)
    files = dict(
      pair.split("=", 1) for pair in said.get("metadata-from-file", "").split(",") if pair
    )
    (STUBS / "attributes").mkdir(exist_ok=True)
    for key, path in files.items():
      shutil.copy(path, STUBS / "attributes" / key)
    port = random.randrange(20_000, 30_000)
    for i in range(HOSTS if files else 0):
      shutil.rmtree(STUBS / f"host-{i}", ignore_errors=True)  # new machines have empty disks
      env = os.environ | {"FOLDER": str(STUBS / f"host-{i}"), "STUB_WORKER": str(i)}
      # JAX asks the metadata server, and only on a machine with TPUs.
      env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(HOSTS)}
      host = subprocess.Popen(
        ["bash", str(STUBS / "attributes" / "startup-script")], env=env | {"RANK": str(i)},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
      )  # fmt: skip
      (STUBS / f"host-{i}.pid").write_text(str(host.pid))
  if verb == "delete":
    for path in STUBS.glob("host-*.pid"):
      try:
        os.killpg(int(path.read_text()), signal.SIGKILL)
      except ProcessLookupError:
        pass
      path.unlink()
    state.unlink()
  return 0


def tpu_vm(verb, name, args):
  """Every host is a folder, which is its home; ssh ends when nobody holds its output any more."""
  worst = 0
  for i in range(HOSTS):
    home = STUBS / f"home-{i}"
    home.mkdir(exist_ok=True)
    if verb == "scp":
      shutil.copy(name, home / args[-1].partition(":")[2])
      continue
    (command,) = (word.removeprefix("--command=") for word in args if "--command=" in word)
    env = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": os.environ["STUB_PORT"]}
    env |= {"WORLD_SIZE": str(HOSTS), "RANK": str(i)}
    done = subprocess.run(["bash", "-c", command], cwd=home, env=env, stdout=subprocess.PIPE)
    worst = max(worst, done.returncode)
    sys.stdout.buffer.write(done.stdout)
  return worst


def curl(args):
  name = args[-1].rsplit("/", 1)[1]
  if name == "agent-worker-number":
    sys.stdout.write(os.environ["STUB_WORKER"])
    return 0
  text = (STUBS / "attributes" / name).read_text()
  # The command's own bucket is a folder here.
  sys.stdout.write(text.replace("gs://", f"{STUBS}/") if name == "cmjax-command" else text)
  return 0


def python3(args):
  """That of an image: it installs nothing, and makes a .venv whose Python is this one."""
  if args[:2] == ["-m", "uv"] and args[2] == "venv":
    link = pathlib.Path(args[-1], "bin", "python")
    link.parent.mkdir(parents=True)
    link.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    link.chmod(0o755)
  elif args[:2] not in (["-m", "uv"], ["-m", "pip"]):
    os.execv(sys.executable, [sys.executable, *args])
  return 0


TOOLS = (srun, sbatch, scontrol, xpk, kubectl, sky, gcloud, curl, python3)

if __name__ == "__main__":
  sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
