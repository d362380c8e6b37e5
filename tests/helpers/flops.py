"""FLOPs of a function by its trace, without compiling it."""

import jax
from jax.interpreters import partial_eval

from cmjax.program import costs


def needed(fn, *args):
  """Of products and convolutions that an output depends on: the others a compiler leaves out."""
  traced = jax.make_jaxpr(fn)(*args).jaxpr
  kept, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  return sum(costs.count_flops(kept).values())
