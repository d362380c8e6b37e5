"""Says what a training step will need on given chips: memory, FLOPs, hours. Nothing is run.

  cmjax plan --config=imagenet512_scd --topology=v5p:4x4x4

With --workdir the plan is also written there, for the report of the run.
"""

from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG
TOPOLOGY = common.Flag("topology", str, "local", "Chips: local, TPUs as v5p:4x4x4, GPUs as h100:8.")
# No compile cache: a program for chips that are not there cannot be read back from it.
FLAGS = (common.WORKDIR, TOPOLOGY)
NEEDS = ()


def run(values, config) -> None:
  """Plans for the chips."""
  from cmjax.program import plan

  report = plan.plan(common.experiment_of(config), values.topology)
  common.say(plan.table(report))
  if values.workdir is not None:
    common.say(plan.write(report, values.workdir))
