"""From a Flax NNX module to a `Network`: the one border of NNX, of precision and of randomness."""

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.base import param_names
from cmjax.networks.layers import along_batch, name_modules
from cmjax.types import Network, Params

PRECISIONS = ("default", "high", "highest")


def as_network(
  make: Callable[..., nnx.Module],
  *,
  dtype: Any = jnp.float32,
  matmul_precision: str | None = None,
  float32_paths: Sequence[str] | None = None,
) -> Network:
  """An NNX module as two pure functions.

  `init(key)` gives a nested plain dict of float32 arrays with readable paths, such as
  `enc/32x32_block0/conv0/kernel`. `apply(params, x, t, cond, key)` casts x and the parameters to
  `dtype` and F back to float32 (where x is float64, everything is); nothing is cast anywhere else
  but where a layer says why. t is passed on as it is, and the layers that embed it keep float32: in
  bfloat16 they make consistency training collapse after a while (arXiv 2510.08431, sec. 4.2).

  Without a key there is no dropout. With one, the mask is a function of the key alone, so a
  `jax.jvp` of `apply` has the same mask in primal and tangent.

  Args:
    make: builds the module from `rngs=nnx.Rngs(...)`, e.g. `functools.partial(MLP, dim=2)`. The
      module is called as `module(x, t, cond, rngs=rngs_or_none)` and has no state but `nnx.Param`.
    dtype: of the body of the network, a floating-point type or its name.
    matmul_precision: of its products and convolutions: "default", "high" or "highest"; None is what
      `jax.default_matmul_precision` says where it is called. It makes a difference in float32 on
      GPUs (TF32) and TPUs (bfloat16), and goes with all derivatives.
    float32_paths: regular expressions; a parameter with a path in which one of them is found stays
      in float32. By default the module's own `float32_paths`.

  Raises:
    ValueError: if `dtype` is no floating-point type, `matmul_precision` none of the three, or an
      expression matches no parameter.

  >>> import functools, jax, jax.numpy as jnp
  >>> from cmjax.networks import MLP
  >>> net = as_network(functools.partial(MLP, dim=2, width=32, depth=1), dtype="bfloat16")
  >>> params = net.init(jax.random.key(0))
  >>> net.apply(params, jnp.ones((3, 2)), jnp.ones(3), {}, None).dtype
  dtype('float32')
  """
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype={dtype.name} is not floating-point. Try float32 or bfloat16.")
  if matmul_precision not in (None, *PRECISIONS):
    raise ValueError(
      f"Unknown matmul_precision {matmul_precision!r}. Choose from: {', '.join(PRECISIONS)}."
    )
  module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  name_modules(module)
  # Naming nnx.Param makes split refuse a module with other state (RNG counters, batch statistics).
  graphdef, shapes = nnx.split(module, nnx.Param)
  patterns = tuple(getattr(module, "float32_paths", ()) if float32_paths is None else float32_paths)
  _check_patterns(patterns, nnx.to_pure_dict(shapes))

  def init(key):
    _, params = nnx.split(make(rngs=nnx.Rngs(key)), nnx.Param)
    return nnx.to_pure_dict(params)

  def apply(params, x, t, cond, key):
    rngs = None if key is None else nnx.Rngs(dropout=key)
    # Who has float64 asks for it: finite differences of a network that trains in another dtype.
    body = x.dtype if x.dtype == jnp.float64 else dtype
    module = nnx.merge(graphdef, _cast(params, body, patterns))
    with _precision(matmul_precision):
      F = module(along_batch(x.astype(body)), along_batch(t), cond, rngs=rngs)
    return along_batch(F).astype(_at_least_float32(body))

  return Network(init, apply)


def _precision(name: str | None) -> contextlib.AbstractContextManager[Any]:
  return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


def _at_least_float32(dtype):
  return jnp.promote_types(dtype, jnp.float32)


def _cast(params: Params, dtype, patterns: Sequence[str]) -> Params:
  """The parameters in `dtype`, those that a pattern names in float32 at least."""

  def leaf(path, a):
    stays = any(re.search(pattern, param_names.name(path)) for pattern in patterns)
    return a.astype(_at_least_float32(dtype) if stays else dtype)

  return jax.tree_util.tree_map_with_path(leaf, params)


def _check_patterns(patterns: Sequence[str], shapes: Params) -> None:
  names = list(param_names.by_name(shapes))
  for pattern in patterns:
    if not any(re.search(pattern, name) for name in names):
      raise ValueError(
        f"float32_paths has {pattern!r}, which is found in no parameter of this network. "
        f"Its parameters: {', '.join(names[:8])}, ..."
      )
