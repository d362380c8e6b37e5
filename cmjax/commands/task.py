"""Which of the tasks of a cluster's job this process is, before it has joined any other."""

import contextlib
import os

from cmjax.base import cluster

# What launchers number their tasks with, from 0: SLURM's srun, Open MPI's mpirun, PMI's.
NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def index() -> int:
  """The number that the launcher gives; 0 where none does."""
  with contextlib.suppress(ValueError):  # half told: no error for what is done by one alone
    if (told := cluster.read(os.environ)) is not None:
      return told.process
  numbers = (os.environ.get(name, "") for name in NUMBERS)
  return max((int(number) for number in numbers if number.isdecimal()), default=0)
