"""Clusters by the variables that they set: all, none, or an error; never many lonely runs."""

import itertools
import os

import jax
import pytest

from cmjax.base import cluster, sharding

HOSTS = "t1v-n-0,t1v-n-1,t1v-n-2,t1v-n-3"
# What each cluster sets, and what is told by it. Names and values are those of its own source.
CASES = {
  "xpk, GPU": (
    {"JAX_COORDINATOR_ADDRESS": "cifar-slice-job-0-0.cifar", "JAX_COORDINATOR_PORT": "6002",
     "NNODES": "4", "NODE_RANK": "3", "GPUS_PER_NODE": "8", "USE_GPUDIRECT": "fastrak",
     "REPLICATED_JOB_NAME": "slice-job", "JOBSET_NAME": "cifar", "JOB_COMPLETION_INDEX": "3",
     "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    (4, 3, "cifar-slice-job-0-0.cifar:6002", None),
  ),
  "xpk, CPU": (
    {"JAX_COORDINATOR_ADDRESS": "cifar-slice-job-0-0.cifar", "JAX_PROCESS_COUNT": "8",
     "PROCESSES_IN_JOB": "4", "JOB_INDEX": "1", "JOB_COMPLETION_INDEX": "2",
     "REPLICATED_JOB_NAME": "slice-job", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    (8, 6, "cifar-slice-job-0-0.cifar:1234", None),
  ),
  "GKE, one TPU slice": (
    {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": HOSTS, "JOB_COMPLETION_INDEX": "2",
     "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    (4, 2, None, None),
  ),
  "GKE, two TPU slices": (
    {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": HOSTS, "MEGASCALE_NUM_SLICES": "2",
     "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "cifar-slice-job-0-0.cifar",
     "JOB_COMPLETION_INDEX": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    (8, 6, None, None),
  ),
  "Kubeflow JAXJob": (
    {"COORDINATOR_ADDRESS": "cifar-worker-0", "COORDINATOR_PORT": "6666", "NUM_PROCESSES": "3",
     "PROCESS_ID": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    (3, 1, "cifar-worker-0:6666", None),
  ),
  "LeaderWorkerSet": (
    {"LWS_LEADER_ADDRESS": "cifar-0.cifar.default", "LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "1",
     "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    (4, 1, "cifar-0.cifar.default:9876", None),
  ),
  "SkyPilot": (
    {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2",
     "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_TASK_ID": "sky-1"},
    (2, 1, "10.0.0.1:9876", None),
  ),
  "torchrun": (
    {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "WORLD_SIZE": "16", "RANK": "9",
     "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"},
    (16, 9, "node1:29501", [1]),
  ),
  "SLURM": (
    {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "node[01-02]",
     "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "16",
     "SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
    (16, 11, None, [3]),
  ),
  "Open MPI": (
    {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
     "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"},
    (8, 5, None, None),
  ),
  "MPICH": (
    {"PMI_SIZE": "4", "PMI_RANK": "2", "MASTER_ADDR": "node1"}, (4, 2, "node1:9876", None)
  ),
}  # fmt: skip


def row_of(told):
  return next(row for row in cluster.ROWS if row.name == told.cluster)


@pytest.mark.parametrize("name", CASES)
def test_every_cluster_is_read_whole_alone_or_not_at_all(name):
  variables, (number, process, coordinator, devices) = CASES[name]
  told = cluster.read(variables)
  assert told is not None and told[1:] == (number, process, coordinator, devices)
  row = row_of(told)
  ours = [key for key in (*row.marks, *row.others) if key in variables]
  assert len(ours) == len(row.marks) + len(row.others)
  others = {k: v for k, v in variables.items() if k not in ours and k.partition("_")[0] != "SLURM"}
  for size in range(len(ours)):
    for kept in itertools.combinations(ours, size):
      part = others | {key: variables[key] for key in kept}
      if any(key in kept for key in row.marks):
        with pytest.raises(ValueError, match=r"not set|different things") as error:
          cluster.read(part)
        assert "\n" not in str(error.value) and "--num_processes=1" in str(error.value)
      elif "MASTER_ADDR" not in kept and not {"TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"} & {*kept}:
        assert cluster.read(part) is None  # what remains is set where nobody means several


def test_every_row_has_a_case_and_no_case_is_another_rows():
  assert {cluster.read(variables).cluster for variables, _ in CASES.values()} == {
    row.name for row in cluster.ROWS
  }


ONE = {
  "a notebook in a pod": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "jupyter"},
  "a container of one": {"WORLD_SIZE": "1"},
  "torchrun on one GPU": {
    "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "WORLD_SIZE": "1", "RANK": "0"
  },
  "srun --pty of one task": {
    "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
  },
  "the interactive step of a larger allocation": {
    "SLURM_JOB_ID": "17", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "node1",
  },
  "a batch script of one node": {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
  "one host of TPUs": {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
  "one node of SkyPilot": {
    "SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"
  },
  "empty variables": {"MASTER_ADDR": "", "JAX_COORDINATOR_ADDRESS": " "},
  "workers of a reader of data": {"NUM_PROCESSES": "8"},
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_a_cluster_of_one_and_what_single_programs_see_too_start_alone(name, monkeypatch):
  told = cluster.read(ONE[name])
  assert told is None or (told.number, told.process) == (1, 0)
  _only(monkeypatch, ONE[name])
  started = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: started.append(args))
  sharding.start()
  assert started in ([], [()])  # at most it asks JAX, which finds none


def _only(monkeypatch, variables):
  names = {key for row in cluster.ROWS for key in (*row.marks, *row.others)}
  for name in {*names, *os.environ} - {"PATH", "HOME"}:
    if name in names or name.split("_")[0] in ("SLURM", "KUBERNETES", "OMPI", "JOB"):
      monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    (  # a batch script that forgets srun
      {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
      "one of 16 processes of SLURM, but SLURM_STEP_NODELIST is not set. Start it with srun",
    ),
    ({"NNODES": "2", "NODE_RANK": "2", "JAX_COORDINATOR_ADDRESS": "a"}, "process 2 must be from 0"),
    ({"NNODES": "two", "NODE_RANK": "0", "JAX_COORDINATOR_ADDRESS": "a"}, "NNODES='two' must be"),
    ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "Export MASTER_ADDR"),
    (
      CASES["SLURM"][0] | CASES["torchrun"][0],
      r"torchrun \(.*process 9 of 16; SLURM \(.*process 11 of 16",
    ),
    (
      CASES["SLURM"][0]
      | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"},
      "3 processes on this host, which has 8 GPUs",
    ),
    (  # alone by one, and half of several by another
      ONE["srun --pty of one task"] | {"RANK": "3", "MASTER_ADDR": "node1"},
      "RANK say that this is one of torchrun, but MASTER_PORT, WORLD_SIZE are not set",
    ),
  ],
)
def test_what_is_half_told_or_told_twice_is_one_line(variables, message):
  with pytest.raises(ValueError, match=message) as error:
    cluster.read(variables)
  assert "\n" not in str(error.value)


def test_what_one_cluster_tells_whole_is_not_spoilt_by_scraps_of_another():
  scraps = {"MASTER_ADDR": "node1", "NNODES": "2"}
  assert cluster.read(CASES["SLURM"][0] | scraps) == cluster.read(CASES["SLURM"][0])
  agreeing = CASES["SLURM"][0] | CASES["torchrun"][0] | {"RANK": "11"}
  assert cluster.read(agreeing)[1:3] == (16, 11)


@pytest.mark.parametrize(
  ("changes", "devices"),
  [
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [3]),  # all of the host's: no cgroups
    ({"CUDA_VISIBLE_DEVICES": "5"}, [0]),  # its own alone: --gpus-per-task
    ({"SLURM_GPUS_ON_NODE": "8"}, [3]),
    (
      {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_LOCALID": "1"},
      [2, 3],
    ),
    (
      {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
       "SLURM_LOCALID": "0"},
      [0, 1, 2, 3],
    ),
  ],
)  # fmt: skip
def test_a_task_has_its_share_of_the_gpus_that_it_sees(changes, devices):
  assert cluster.read(CASES["SLURM"][0] | changes).devices == devices


def test_a_pod_of_an_indexed_job_does_not_train_alone(monkeypatch):
  _only(monkeypatch, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"})
  monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="not how many there are. Set JAX_COORDINATOR_ADDRESS"):
    sharding.start()
  sharding.start(num_processes=1)


@pytest.mark.parametrize(
  ("error", "kind", "message"),
  [
    (RuntimeError("DEADLINE_EXCEEDED: tasks"), sharding.OthersMissing, "process 9 of 16 did not"),
    (RuntimeError("should only be called once."), RuntimeError, "^should only be called once"),
    (ValueError("coordinator_address should be defined."), ValueError, "does not find process 0"),
  ],
)
def test_a_join_that_fails_says_who_waited_for_whom(monkeypatch, error, kind, message):
  _only(monkeypatch, CASES["torchrun"][0])

  def initialize(*args, **kwargs):
    assert (args, kwargs) == (("node1:29501", 16, 9), {"local_device_ids": [1]})
    raise error

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(kind, match=message):
    sharding.start()
