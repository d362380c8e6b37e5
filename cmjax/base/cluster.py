"""Who the other processes of a run are, by the variables that clusters set.

JAX finds some clusters by itself and knows nothing of others, and where it finds none, each process
trains alone. So the variables are read here first, of every cluster in `ROWS`: what they say, or
which are missing. A cluster that is half told is an error, and never many lonely runs.
"""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

Variables = Mapping[str, str]


class Told(NamedTuple):
  """What the variables of a cluster say.

  Attributes:
    cluster: its name.
    number: of processes.
    process: this one's number, from 0.
    coordinator: host:port of process 0; None: JAX finds it.
    devices: the GPUs of this process among those it sees; None: JAX decides.
  """

  cluster: str
  number: int
  process: int
  coordinator: str | None = None
  devices: list[int] | None = None


class Row(NamedTuple):
  """A kind of cluster.

  Attributes:
    name: as messages call it.
    marks: variables that only it sets: one of them is enough to know that it is meant.
    number: of processes; None where that is not told.
    process: this one's number.
    coordinator: host:port of process 0; None: JAX finds it.
    others: variables that it needs too, but that are also set where no run of several is meant.
    tasks: (which of the processes on its host, how many there are), or None.
    unless: variables that say that it is another kind.
    advice: what to do where variables are missing.
  """

  name: str
  marks: tuple[str, ...]
  number: Callable[[Variables], int | None]
  process: Callable[[Variables], int]
  coordinator: Callable[[Variables], str] | None
  others: tuple[str, ...] = ()
  tasks: Callable[[Variables], tuple[int, int | None] | None] = lambda env: None
  unless: tuple[str, ...] = ()
  advice: str = ""


def integer(env: Variables, name: str) -> int:
  """A variable that must be a number from 0.

  Raises:
    ValueError: it is not.
  """
  text = env[name].strip()
  if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
    raise ValueError(f"{name}={text!r} must be an integer from 0.")
  return int(text)


def _told(name: str) -> Callable[[Variables], int | None]:
  return lambda env: integer(env, name) if name in env else None


def _numbered(name: str) -> Callable[[Variables], int]:
  return lambda env: integer(env, name)


def _at(host: str, env: Variables, port: str, default: int) -> str:
  """host:port; a host that has a port already keeps it."""
  if ":" in host and not host.endswith("]") and host.count(":") == 1:
    return host
  return f"{host}:{integer(env, port) if port in env else default}"


def _torch_coordinator(env: Variables) -> str:
  # torchrun listens on MASTER_PORT itself.
  port = integer(env, "MASTER_PORT")
  return f"{env['MASTER_ADDR']}:{port + 1 if port < 65535 else port - 1}"


def _tpu_hosts(env: Variables) -> int | None:
  return len(env["TPU_WORKER_HOSTNAMES"].split(",")) if "TPU_WORKER_HOSTNAMES" in env else None


def _slices_number(env: Variables) -> int | None:
  slices, hosts = _told("MEGASCALE_NUM_SLICES")(env), _tpu_hosts(env)
  return None if slices is None or hosts is None else slices * hosts


def _slices_process(env: Variables) -> int:
  hosts = _tpu_hosts(env)
  assert hosts is not None, "read where all variables are there"
  return integer(env, "MEGASCALE_SLICE_ID") * hosts + integer(env, "TPU_WORKER_ID")


def _slurm_number(env: Variables) -> int | None:
  # In an interactive step SLURM_NTASKS is that of the allocation around it.
  return _told("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS")(env)


def _slurm_tasks(env: Variables) -> tuple[int, int | None]:
  """SLURM_STEP_TASKS_PER_NODE is "8" or "8(x2),4": so many on each node, in their order."""
  text, node = env.get("SLURM_STEP_TASKS_PER_NODE", ""), env.get("SLURM_NODEID", "")
  counts = [
    count
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    for count in [int(number)] * int(times or 1)
  ]
  known = node.isdigit() and int(node) < len(counts)
  return integer(env, "SLURM_LOCALID"), counts[int(node)] if known else None


MEGASCALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
ROWS = (
  Row(
    # docker_resources.py of github.com/AI-Hypercomputer/xpk; launch/jobset.sh too.
    "a JobSet of GPU nodes, as xpk makes it",
    ("JAX_COORDINATOR_ADDRESS", "NNODES", "NODE_RANK"),
    _told("NNODES"),
    _numbered("NODE_RANK"),
    lambda env: _at(env["JAX_COORDINATOR_ADDRESS"], env, "JAX_COORDINATOR_PORT", 6002),
  ),
  Row(
    # The same file; the port is that of MaxText.
    "a JobSet of CPU nodes, as xpk makes it",
    ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_COUNT", "PROCESSES_IN_JOB"),
    _told("JAX_PROCESS_COUNT"),
    lambda env: (
      integer(env, "JOB_INDEX") * integer(env, "PROCESSES_IN_JOB")
      + integer(env, "JOB_COMPLETION_INDEX")
    ),
    lambda env: _at(env["JAX_COORDINATOR_ADDRESS"], env, "JAX_COORDINATOR_PORT", 1234),
    others=("JOB_INDEX", "JOB_COMPLETION_INDEX"),
  ),
  Row(
    "a TPU slice on GKE",
    ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
    _tpu_hosts,
    _numbered("TPU_WORKER_ID"),
    None,
    unless=MEGASCALE,
  ),
  Row(
    "several TPU slices on GKE",
    MEGASCALE,
    _slices_number,
    _slices_process,
    None,
    others=("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
  ),
  Row(
    "a JAXJob of Kubeflow",
    ("COORDINATOR_ADDRESS", "PROCESS_ID"),
    _told("NUM_PROCESSES"),
    _numbered("PROCESS_ID"),
    lambda env: _at(env["COORDINATOR_ADDRESS"], env, "COORDINATOR_PORT", 6666),
    others=("NUM_PROCESSES", "COORDINATOR_PORT"),
  ),
  Row(
    "a LeaderWorkerSet",
    ("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"),
    _told("LWS_GROUP_SIZE"),
    _numbered("LWS_WORKER_INDEX"),
    lambda env: _at(env["LWS_LEADER_ADDRESS"], env, "JAX_COORDINATOR_PORT", 9876),
  ),
  Row(
    "SkyPilot",
    ("SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"),
    _told("SKYPILOT_NUM_NODES"),
    _numbered("SKYPILOT_NODE_RANK"),
    lambda env: _at(env["SKYPILOT_NODE_IPS"].split()[0], env, "JAX_COORDINATOR_PORT", 9876),
  ),
  Row(
    "torchrun",
    ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"),
    _told("WORLD_SIZE"),
    _numbered("RANK"),
    _torch_coordinator,
    tasks=lambda env: (
      (integer(env, "LOCAL_RANK"), _told("LOCAL_WORLD_SIZE")(env)) if "LOCAL_RANK" in env else None
    ),
  ),
  Row(
    "SLURM",
    ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
    _slurm_number,
    _numbered("SLURM_PROCID"),
    None,
    others=("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"),
    tasks=_slurm_tasks,
    advice="Start it with srun, which sets them for every task",
  ),
  Row(
    "Open MPI",
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    _told("OMPI_COMM_WORLD_SIZE"),
    _numbered("OMPI_COMM_WORLD_RANK"),
    None,
  ),
  Row(
    # mpiexec sets no address, and JAX knows nothing of it.
    "MPICH or Intel MPI",
    ("PMI_SIZE", "PMI_RANK"),
    _told("PMI_SIZE"),
    _numbered("PMI_RANK"),
    lambda env: _at(env["MASTER_ADDR"], env, "MASTER_PORT", 9876),
    others=("MASTER_ADDR",),
    advice="Export MASTER_ADDR, the host of rank 0",
  ),
)
# Every pod has the first; a pod of an Indexed Job has the second too. How many pods such a Job has,
# only the API tells, which JAX asks where the package `kubernetes` is installed.
POD, INDEX = "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"


def is_in_job(env: Variables | None = None) -> bool | None:
  """Whether this pod is one of an Indexed Job; None: it is in no pod."""
  env = os.environ if env is None else env
  return INDEX in env if POD in env else None


# What numbers the tasks of a job from 0, also where no more is told: srun, mpirun, PMI.
_NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def index(env: Variables | None = None) -> int:
  """The number of this task of a job, before it has joined any other; 0 where none is told.

  Args:
    env: the environment, by default this process's.
  """
  env = os.environ if env is None else env
  with contextlib.suppress(ValueError):  # half told: no error for what is done by one alone
    if (told := read(env)) is not None:
      return told.process
  numbers = (env.get(name, "") for name in _NUMBERS)
  return max((int(number) for number in numbers if number.isdecimal()), default=0)


def read(env: Variables | None = None) -> Told | None:
  """What the variables say; None: nothing, so that there are no others as far as they know.

  Args:
    env: the environment, by default this process's; an empty variable counts as missing.

  Raises:
    ValueError: a cluster is half told, its numbers are none, or two clusters tell different things.
  """
  env = os.environ if env is None else env
  env = {name: value for name, value in env.items() if value.strip()}
  meant = [row for row in ROWS if _is_meant(row, env)]
  told = {row: _read(row, env) for row in meant if not _missing(row, env) or _is_alone(row, env)}
  several = {row: one for row, one in told.items() if one.number > 1}
  if len({(one.number, one.process) for one in several.values()}) > 1:
    said = "; ".join(
      f"{one.cluster} ({', '.join(row.marks)}): process {one.process} of {one.number}"
      for row, one in several.items()
    )
    raise ValueError(
      f"Two clusters tell this process different things. {said}. Unset the variables of one, or "
      "give --coordinator, --num_processes and --process_id."
    )
  if several:
    return next(iter(several.values()))
  known = {name for row in told for name in (*row.marks, *row.others)}
  half = [row for row in meant if row not in told and not {*row.marks} & env.keys() <= known]
  if half:
    raise ValueError(_half_told(min(half, key=lambda row: len(_missing(row, env))), env))
  return next(iter(told.values()), None)


def _is_meant(row: Row, env: Variables) -> bool:
  return any(name in env for name in row.marks) and not any(name in env for name in row.unless)


def _missing(row: Row, env: Variables) -> list[str]:
  return [name for name in (*row.marks, *row.others) if name not in env]


def _is_alone(row: Row, env: Variables) -> bool:
  """Whether it says that there is one process: then it needs to say no more."""
  return row.number(env) == 1


def _read(row: Row, env: Variables) -> Told:
  number = row.number(env)
  if number == 1:
    return Told(row.name, 1, 0)
  process = row.process(env)
  if number is None or not 0 <= process < number:
    raise ValueError(f"{row.name}: process {process} must be from 0 to {(number or 0) - 1}.")
  coordinator = row.coordinator(env) if row.coordinator else None
  return Told(row.name, number, process, coordinator, _devices(row, env))


def _devices(row: Row, env: Variables) -> list[int] | None:
  """Which of the GPUs that it sees are this process's, where several processes share a host.

  A site may show each task its own GPU alone, or all of the host's to every task.
  """
  tasks = row.tasks(env)
  if tasks is None:
    return None
  local, count = tasks
  shown = env.get("CUDA_VISIBLE_DEVICES")
  gpus = len(shown.split(",")) if shown else None
  if gpus is None and "SLURM_GPUS_ON_NODE" in env and row.name == "SLURM":
    gpus = integer(env, "SLURM_GPUS_ON_NODE")
  if gpus is None or count is None:
    return [0] if gpus == 1 else None if count == 1 else [local]
  if count == 1 or gpus < count:  # all that it sees are its own
    return list(range(gpus))
  if gpus % count:
    raise ValueError(
      f"{row.name} started {count} processes on this host, which has {gpus} GPUs: start as many "
      "processes as GPUs, or a number that divides them."
    )
  each = gpus // count
  return list(range(local * each, (local + 1) * each))


def _half_told(row: Row, env: Variables) -> str:
  lacking = _missing(row, env)
  there = [name for name in (*row.marks, *row.others) if name in env]
  number = row.number(env)
  many = f" of {number} processes" if number else ""
  advice = row.advice or "Set them"
  return (
    f"{', '.join(there)} say that this is one{many} of {row.name}, but {', '.join(lacking)} "
    f"{'is' if len(lacking) == 1 else 'are'} not set. {advice}; or give --coordinator, "
    "--num_processes and --process_id; or --num_processes=1 to start alone."
  )
