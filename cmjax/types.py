"""The four function types that hold cmjax together, and the names of what they pass around."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array as Array
from jaxtyping import Float

# Points, images or latents: a batch axis, then any others.
Data = Float[Array, "b *d"]
# One TrigFlow angle in [0, pi/2] per sample.
Time = Float[Array, " b"]

Params = Any  # a pytree of arrays; in `TrainState` a dict: net, weighting, ...
Cond = dict[str, Array]  # what a network is conditioned on: label, guidance, ... or empty
Batch = dict[str, Array]  # image [b, *d] in [-1, 1]; label [b] where there are classes
Metrics = dict[str, Any]  # name -> statistics.Mean

# params, x, t, cond, key -> F. x is x_t / sigma_data, t the TrigFlow angle; F has unit scale.
# Without a key the network is deterministic (no dropout).
NetFn = Callable[[Params, Array, Array, Cond, Array | None], Array]


class Network(NamedTuple):
  """F_theta(x_t / sigma_data, t) as two pure functions: all that others see of a network."""

  init: Callable[[Array], Params]  # key -> params
  apply: NetFn


# x0, z, x_t, t, cond -> dx_t/dt of the trajectory to follow: the data's own, or a teacher's.
VelocityFn = Callable[[Array, Array, Array, Array, Cond], Array]

# params, batch, key, step -> loss, metrics: what one train step differentiates.
LossFn = Callable[[Params, Batch, Array, Array], tuple[Array, Metrics]]

# A network and weights of it: another run's, to distil, to start from or to guide with.
Model = tuple[Network, Params]
