"""From a module of a neural network library to a `cmjax.types.Network`: NNX, Linen, Equinox.

One convention for all three: `module(x, t, cond)` gives F, an array of the shape of x.

* x is [b, ...]: x_t / sigma_data, in the dtype of the network.
* t is [b]: the TrigFlow angle in [0, pi/2], in float32 whatever the dtype of the network. Cast what
  you make of it to `x.dtype`, or every product after it is in float32.
* cond is a dict of arrays [b, ...], empty where nothing conditions the network: `label` (integers,
  -1 means no condition), `guidance`, `segment`.

Randomness comes with a key, as each library has it; without a key the network is deterministic.
Beside its `__call__` a module may have these attributes, all optional:

* `inputs`: what it reads of cond beside the label, such as `("guidance",)`;
* `float32_paths`: regular expressions for the parameters that stay in float32, such as those of the
  embedding of t;
* `normalized_paths`: regular expressions for the parameters that are put back to unit norm after
  each update. The norm is taken over all axes but the last.
"""

from cmjax.networks.adapters.equinox_modules import from_equinox as from_equinox
from cmjax.networks.adapters.linen_modules import from_linen as from_linen
from cmjax.networks.adapters.nnx_modules import from_nnx as from_nnx
from cmjax.networks.adapters.parts import from_part as from_part
