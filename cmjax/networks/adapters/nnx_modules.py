"""From a Flax NNX module to a `Network`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from cmjax.base import param_names
from cmjax.networks.adapters import border
from cmjax.networks.layers import name_modules
from cmjax.types import Array, Network, Params

# Random streams inside a module are folded from the key with this, so that they are other numbers
# than those of the `rngs` that it is called with, which count their draws from 0.
INNER_STREAMS = 2**31


def from_nnx(
  make: Callable[..., Any],
  *,
  shape: Sequence[int] | None = None,
  num_classes: int = 0,
  inputs: Sequence[str] | None = None,
  dtype: Any = "float32",
  matmul_precision: str | None = None,
  float32_paths: Sequence[str] | None = None,
  name: str | None = None,
) -> Network:
  """A Flax NNX module as a Network.

  The module is called as `module(x, t, cond)`; see `cmjax.networks.adapters`. Randomness, with a
  key: if its `__call__` takes `rngs`, it gets `nnx.Rngs(dropout=key)`, and None without a key. The
  streams of `nnx.Dropout` and all others inside the module start anew from the key. Without a key
  the module is in `eval()` mode. If `__call__` takes `deterministic` or `train`, it gets that too.
  A dropout mask is a function of the key alone, so a jvp has the same mask in primal and tangent.

  `init(key)` gives a nested dict of float32 arrays with readable paths, such as
  `enc/32x32_block0/conv0/kernel`. Parameters are `nnx.Param`. A plain array as an attribute of the
  module is a constant. Other variables are state, which a network may not have.

  Args:
    make: builds the module from `rngs=nnx.Rngs(...)`: a class, a function or a `functools.partial`
      such as `functools.partial(MLP, dim=2)`. If it has an argument `remat`, the network has that
      option: `net.at(remat=True)`.
    shape: of one sample. With it the module is tried out at once, without computing anything.
    num_classes: 0 if the network reads no label; for trying it out.
    inputs: what it reads of cond beside the label. By default the module's own `inputs`, or none.
    dtype: of the body of the network, a floating-point type or its name.
    matmul_precision: of its products and convolutions: "default", "high" or "highest"; None is what
      `jax.default_matmul_precision` says where it is called. It makes a difference in float32 on
      GPUs (TF32) and TPUs (bfloat16), and goes with all derivatives.
    float32_paths: regular expressions; a parameter with a path in which one of them is found stays
      in float32. By default the module's own `float32_paths`, or none.
    name: for messages and records. By default that of the module's class.

  Raises:
    ValueError: if the module does not fit, saying what to change.

  >>> import functools, jax, jax.numpy as jnp
  >>> from cmjax.networks import MLP
  >>> net = from_nnx(functools.partial(MLP, dim=2, width=32, depth=1), dtype="bfloat16")
  >>> params = net.init(jax.random.key(0))
  >>> net.apply(params, jnp.ones((3, 2)), jnp.ones(3), {}, None).dtype
  dtype('float32')
  """
  border.check_maker(make, "rngs", "from_nnx")
  body = _body(make, inputs, float32_paths, name)
  net = border.network(body, dtype=dtype, matmul_precision=matmul_precision)
  return border.tried(net, body.shapes, shape, num_classes)


def _body(make, inputs, float32_paths, name) -> border.Body:
  module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  name = name or border.name_of(module)
  _check_state(module, name)
  keywords = border.call_keywords(module, name, ("rngs", "deterministic", "train"))
  if _has_constants(module):
    module = make(rngs=nnx.Rngs(0))  # their values are needed, so this is not abstract
    _check_constants(module, make(rngs=nnx.Rngs(1)), name)
  name_modules(module)
  module.train()
  training, shapes, streams, constants = nnx.split(module, nnx.Param, nnx.RngState, ...)
  module.eval()
  deterministic, *_ = nnx.split(module, nnx.Param, nnx.RngState, ...)
  shapes, streams, constants = map(nnx.to_pure_dict, (shapes, streams, constants))

  def init(key):
    _, params, _ = nnx.split(make(rngs=nnx.Rngs(key)), nnx.Param, ...)
    return _string_keys(nnx.to_pure_dict(params))

  def call(params, x, t, cond, key):
    graphdef = deterministic if key is None else training
    module = nnx.merge(graphdef, _keys_of(shapes, params), _fresh(streams, key), constants)
    options: dict[str, Any] = border.flags(keywords, key)
    if "rngs" in keywords:
      options["rngs"] = None if key is None else nnx.Rngs(dropout=key)
    return module(x, t, cond, **options)

  return border.Body(
    init,
    call,
    _string_keys(shapes),
    name,
    border.inputs_of(module, inputs),
    **border.paths_of(module, float32_paths),
    remat=border.remat_of(make),
    rebuild=lambda remat: _body(functools.partial(make, remat=remat), inputs, float32_paths, name),
  )


def _fresh(streams: Params, key: Array | None) -> Params:
  """The random streams of a module, started from the key; without one, always the same."""
  if not streams:
    return streams
  base = jax.random.fold_in(jax.random.key(0) if key is None else key, INNER_STREAMS)
  leaves, treedef = jax.tree.flatten(streams)

  def leaf(i, a):
    if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      return jnp.zeros(a.shape, a.dtype)  # the number of draws
    stream = jax.random.fold_in(base, i)
    return jax.random.split(stream, a.shape) if a.shape else stream

  return jax.tree.unflatten(treedef, [leaf(i, a) for i, a in enumerate(leaves)])


def _string_keys(tree: Any) -> Any:
  """Lists of modules have whole numbers as keys; parameters have names."""
  return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _keys_of(template: Any, tree: Any) -> Any:
  """The inverse of `_string_keys`."""
  if not isinstance(template, dict):
    return tree
  return {k: _keys_of(v, tree[str(k)]) for k, v in template.items()}


# --- state and constants ------------------------------------------------------------------------


def _check_state(module: nnx.Module, name: str) -> None:
  """Raises for variables that are neither parameters nor random streams."""
  modules = dict(nnx.iter_modules(module))
  _, _, _, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
  for path, leaf in nnx.to_flat_state(rest):
    where, kind = "/".join(map(str, path)), type(leaf).__name__
    if isinstance(leaf, nnx.BatchStat):
      owner = type(modules[path[:-1]]).__name__ if path[:-1] in modules else kind
      instead = "nnx.GroupNorm, nnx.LayerNorm or nnx.RMSNorm"
      raise border.batch_statistics(name, "/".join(map(str, path[:-1])) or where, owner, instead)
    if isinstance(leaf, nnx.Variable):
      raise ValueError(
        f"{name} has state in {where}, an nnx.{kind}. A network is a pure function of its "
        "parameters: make it an nnx.Param if it is trained, or a plain array if it is constant."
      )


def _has_constants(module: nnx.Module) -> bool:
  """Whether the abstract module has arrays outside of variables."""
  # Built abstractly, such an attribute is a tracer, which NNX does not take for an array.
  leaked = any(
    isinstance(value, Tracer)
    for _, node in nnx.iter_graph(module)
    if isinstance(node, nnx.Pytree)
    for value in vars(node).values()
  )
  return leaked or bool(_constants(module))


def _constants(module: nnx.Module) -> dict[str, Any]:
  """The arrays outside of variables, by their paths."""
  _, _, rest = nnx.split(module, nnx.Variable, ...)
  return param_names.by_name(nnx.to_pure_dict(rest))


def _check_constants(module: nnx.Module, other: nnx.Module, name: str) -> None:
  """Raises if a plain array is another one in a module made from another seed."""
  others = _constants(other)
  for path, a in _constants(module).items():
    if not np.array_equal(a, others[path]):
      raise border.random_constant(name, path, "an nnx.Param")
