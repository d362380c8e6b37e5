"""What a step is made of beside the loss: the optimizer, the averages, the state of step 0."""

import re
from collections.abc import Callable

import jax
import optax

from cmjax import ema, networks
from cmjax.experiment.fields import Experiment
from cmjax.training import optim
from cmjax.training.step import TrainState, make_init

TARGET = "target"  # the average that is a loss's target network


def normalized(experiment: Experiment) -> Callable[[str], bool] | None:
  """The path of a parameter -> whether it is held at unit norm; None where none is.

  They are the network's and its fake's, and the method's. In EDM2's networks these are all kernels,
  the one of its head for logvar too; in others, none.
  """
  of_network, of_method = experiment.network.normalized_paths, experiment.method.normalized_paths
  if not of_network and not of_method:
    return None

  def held(path: str) -> bool:
    part, _, inside = path.partition("/")  # what a network says is of the paths inside it
    own = part in ("net", "fake") and any(re.search(p, inside) for p in of_network)
    return own or any(re.search(p, path) for p in of_method)

  return held


def transformation(experiment: Experiment) -> optax.GradientTransformation:
  """The optax chain of all that is trained; beside the network that of VSD's fake score.

  The weights that a network wants at unit norm are put back there last, after each update.
  """
  tx, held = experiment.method.optimizer(experiment.tx), normalized(experiment)
  return optax.chain(tx, optim.project(networks.normalize_kernel, held)) if held else tx


def target_name(experiment: Experiment) -> str | None:
  """The average that is the loss's target network; None where that is the network as it is."""
  return None if experiment.method.target is None else TARGET


def decays(experiment: Experiment) -> dict[str, ema.Decay]:
  """The averages by name, and the target network's where the loss has one."""
  found = dict(experiment.averages)
  if experiment.method.target is not None:
    if TARGET in found:
      raise ValueError(
        "ema.target is the name of the loss's own target network: take another name."
      )
    found[TARGET] = experiment.method.target
  return found


def state_init(
  experiment: Experiment, tx: optax.GradientTransformation | None = None
) -> Callable[..., TrainState]:
  """(key, start=None, teacher=None) -> the TrainState of step 0.

  `start` are the network's first weights, and `teacher` those of the teacher in this network's
  shape, for a method that starts a fake score from them; where they are not given they are random.
  All weights that are held at unit norm are put there.

  Args:
    experiment: whose state.
    tx: its `transformation`, where that is made already.
  """
  net, method, held = experiment.network, experiment.method, normalized(experiment)
  tx, names = tx or transformation(experiment), tuple(decays(experiment))

  def init(key, start=None, teacher=None):
    def init_params(key):
      key_net, key_method = jax.random.split(key)
      params = {"net": net.init(key_net) if start is None else start}
      params |= method.init(key_method, params["net"], teacher)
      return optim.at_paths(networks.normalize_kernel, held, params) if held else params

    return make_init(init_params, tx, names)(key)

  return init
