"""Trains, or goes on with a run that was interrupted.

  cmjax train --config=cifar10_sct --workdir=runs/cifar10
  cmjax train --workdir=runs/cifar10

The first starts a run, or goes on with it. The second goes on with the config that the run has.
Every value of the config can be set: --config.optim.lr=3e-4. Exit codes: 0 done; 75 interrupted by
a signal (SIGTERM, SIGINT, SIGHUP, SIGUSR1, ...), state saved, start the same command again; 69 the
other processes of the run did not come, start again; 1 an error. All are in
docs/guides/resume.md.
"""

from cmjax.base.ranges import Count
from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_RUN
ALLOW_CONFIG_CHANGE = common.Flag(
  "allow_config_change", bool, False, "Go on although the config is not the checkpoint's."
)
PROFILE_STEPS = common.Flag(
  "profile_steps", str, None, "Steps to trace into workdir/profile: 10:15 are five, from step 10."
)
TRIES = common.Flag(
  "tries",
  Count,
  None,
  "Refuse to start after so many starts in a row without a new checkpoint: for launchers, which "
  "start a lost run again. By default any number.",
)
FLAGS = (
  common.WORKDIR,
  ALLOW_CONFIG_CHANGE,
  PROFILE_STEPS,
  TRIES,
  *common.PROCESSES,
  common.COMPILE_CACHE,
)
NEEDS = (common.WORKDIR,)


def run(values, config) -> None:
  """Trains the experiment."""
  from cmjax.base import sharding
  from cmjax.program import ending, profiling, train

  steps = profiling.steps_of(values.profile_steps)
  experiment = common.experiment_of(config)
  scores = train.train(
    experiment,
    values.workdir,
    allow_config_change=values.allow_config_change,
    profile_steps=steps,
    tries=values.tries,
  )
  if sharding.process()[0] == 0:
    common.say(ending.said(experiment, values.workdir, scores))
