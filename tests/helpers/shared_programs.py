"""Experiments that differ in nothing that is compiled share their functions, and so their programs.

Most of what a tiny training costs is tracing, lowering and compiling the step. Where the network,
the loss, the optimizer and the averages of two configs are alike, the second experiment gets the
first one's functions, by which JAX knows that it has their programs.
"""

import contextlib
import json
from unittest import mock

from cmjax import experiment
from cmjax.experiment import models, sampling
from cmjax.program import compiled_step

# The sections of a config, and the numbers of a run, that programs are made of. The number of steps
# is none: schedules and curricula have lengths of their own, and are checked in `parse`.
SECTIONS = (
  *("net", "loss", "optim", "ema", "samplers", "data", "sigma_data"),
  "batch_size",  # half-lives of averages count images
)
NUMBERS = ("batch_size", "microbatch", "steps_per_dispatch", "loss_scale", "sigma_data")
FUNCTIONS = ("network", "method", "tx", "schedule", "averages", "samplers")


class _Kept:
  """What was made, by what it was made of; the makers' arguments are kept too, so that ids stay."""

  def __init__(self):
    self._made = {}

  def get(self, make, names, *held):
    key = (names, *map(id, held))
    if key not in self._made:
      self._made[key] = make(), held
    return self._made[key][0]


@contextlib.contextmanager
def shared_programs():
  """While it is open, a program of the tests is traced once."""
  kept = _Kept()
  parse, step_fn, state_init = experiment.parse, compiled_step.make_step_fn, experiment.state_init
  transformation, compile_step = experiment.transformation, compiled_step.compile_step
  sampler = sampling.compiled_sampler

  def shared_parse(config):
    new = parse(config)
    key = json.dumps({k: new.record.get(k) for k in SECTIONS}, sort_keys=True, default=str)
    first = kept.get(lambda: new, key)
    same = {name: getattr(first, name) for name in FUNCTIONS}
    return new._replace(**same, parsed={**new.parsed, **same})

  def shared_transformation(exp):
    return kept.get(lambda: transformation(exp), "tx", exp.network, exp.method, exp.tx)

  def shared_init(exp, tx=None):
    tx = tx or shared_transformation(exp)
    made_of = exp.network, exp.method, tx, exp.averages
    return kept.get(lambda: state_init(exp, tx), "init", *made_of)

  def shared_step_fn(exp, tx, teacher=None):
    numbers = tuple(getattr(exp.run, name) for name in NUMBERS)
    made_of = exp.network, exp.method, tx, exp.averages, teacher
    return kept.get(lambda: step_fn(exp, tx, teacher), ("step", numbers), *made_of)

  def shared_compile(made, mesh, arguments, options):
    make = lambda: compile_step(made, mesh, arguments, options)
    return kept.get(make, ("compiled", mesh, str(options)), made)

  def shared_sampler(exp, key, mesh, guide=None):
    if guide or key not in exp.samplers:
      return sampler(exp, key, mesh, guide)
    make = lambda: sampler(exp, key, mesh)
    made_of = exp.network, exp.method, exp.samplers[key]
    return kept.get(make, ("sampler", mesh, exp.samples), *made_of)

  with contextlib.ExitStack() as stack:
    for place, name, function in (
      (experiment, "parse", shared_parse),
      (experiment, "transformation", shared_transformation),
      (experiment, "state_init", shared_init),
      (compiled_step, "make_step_fn", shared_step_fn),
      (compiled_step, "compile_step", shared_compile),
      (experiment, "compiled_sampler", shared_sampler),
      (sampling, "compiled_sampler", shared_sampler),
    ):
      stack.enter_context(mock.patch.object(place, name, function))
    yield


@contextlib.contextmanager
def shared_networks():
  """While it is open, the network of a section of configs is put together once."""
  kept, network = _Kept(), models.network

  def shared(section, sigma_data):
    section = dict(section)
    key = json.dumps([section, sigma_data], sort_keys=True, default=str)
    return kept.get(
      lambda: network(section, sigma_data), (key, models.NETWORKS.get(section.get("name")))
    )

  with mock.patch.object(models, "network", shared):
    yield
