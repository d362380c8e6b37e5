"""The four function types that hold cmjax together, and the names of what they pass around."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
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
Metrics = dict[str, Any]  # name -> losses.means.Mean

# params, x, t, cond, key -> F. x is x_t / sigma_data, t the TrigFlow angle; F has unit scale.
# Without a key the network is deterministic (no dropout).
NetFn = Callable[[Params, Array, Array, Cond, Array | None], Array]


class Network(NamedTuple):
  """F_theta(x_t / sigma_data, t) as two pure functions: all that others see of a network.

  `Network(init, apply)` is whole. What stands after them is known of a network that an adapter
  made (`cmjax.networks`), and lets programs do more with it.

  Attributes:
    init: key -> params, a pytree of float32 arrays.
    apply: params, x, t, cond, key -> F.
    at: the same function computed otherwise: `at(dtype="float64")`, `at(remat=True)`, with any of
      the keys of `options`. None: it can be computed in one way only.
    options: how it is computed: dtype, matmul_precision, and remat where it has that.
    inputs: what it reads of `cond` beside the label: guidance, segment.
    normalized_paths: regular expressions for the parameters that are put back to unit norm after
      each update.
    float32_paths: regular expressions for the parameters that stay in float32.
    name: for messages and records, `mlp` or `my_package.networks:Mine`.
  """

  init: Callable[[Array], Params]
  apply: NetFn
  at: "Callable[..., Network] | None" = None
  options: Mapping[str, Any] = MappingProxyType({})
  inputs: tuple[str, ...] = ()
  normalized_paths: tuple[str, ...] = ()
  float32_paths: tuple[str, ...] = ()
  name: str = ""


# x0, z, x_t, t, cond -> dx_t/dt of the trajectory to follow: the data's own, or a teacher's.
VelocityFn = Callable[[Array, Array, Array, Array, Cond], Array]

# params, batch, key, step -> loss, metrics: what one train step differentiates.
LossFn = Callable[[Params, Batch, Array, Array], tuple[Array, Metrics]]

# A network and weights of it: another run's, to distil, to start from or to guide with.
Model = tuple[Network, Params]
