"""From an Equinox module to a `Network`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.networks.adapters import border
from cmjax.types import Array, Network, Params


def from_equinox(
  make: Callable[..., Any],
  *,
  shape: Sequence[int] | None = None,
  vmapped: bool = False,
  num_classes: int = 0,
  inputs: Sequence[str] | None = None,
  dtype: Any = "float32",
  matmul_precision: str | None = None,
  float32_paths: Sequence[str] | None = None,
  name: str | None = None,
) -> Network:
  """An Equinox module as a Network.

  The module is called on the whole batch as `module(x, t, cond)`; see `cmjax.networks.adapters`.
  Most Equinox modules are for one sample. With `vmapped=True` the module is called on each, with x
  [...], t [] and the arrays of cond without their batch axis.

  Randomness: if `__call__` takes `key`, it gets the key, or None without one. With `vmapped` each
  sample gets a key of its own. Without a key the module is in `equinox.nn.inference_mode`. Dropout
  is a function of the key alone, so a jvp has the same mask in primal and tangent.

  `init(key)` gives a nested dict of float32 arrays with the paths of the attributes, such as
  `layers/0/weight`: all floating-point arrays of the module. Other arrays, such as tables of whole
  numbers, are constants. (Equinox's kernels are [out, in]: a module that names `normalized_paths`
  has to store its own as [in, out].)

  Args:
    make: builds the module from `key=`: a class, a function or a `functools.partial`. If it has an
      argument `remat`, the network has that option: `net.at(remat=True)`.
    shape: of one sample. With it the module is tried out at once, without computing anything.
    vmapped: whether the module is for one sample.
    num_classes: 0 if the network reads no label; for trying it out.
    inputs: what it reads of cond beside the label. By default the module's own `inputs`, or none.
    dtype: of the body of the network; see `from_nnx`.
    matmul_precision: of its products and convolutions; see `from_nnx`.
    float32_paths: regular expressions for the parameters that stay in float32. By default the
      module's own `float32_paths`, or none.
    name: for messages and records. By default that of the module's class.

  Raises:
    ValueError: if the module does not fit, saying what to change.
    ImportError: if Equinox is not installed.
  """
  _equinox()
  border.check_maker(make, "key", "from_equinox")
  body = _body(make, vmapped, inputs, float32_paths, name)
  net = border.network(body, dtype=dtype, matmul_precision=matmul_precision)
  return border.tried(net, body.shapes, shape, num_classes)


def _equinox() -> Any:
  # Imported here: cmjax does not need it.
  try:
    import equinox
  except ImportError:
    raise ImportError("from_equinox needs Equinox: pip install equinox.") from None
  return equinox


def _body(make, vmapped, inputs, float32_paths, name) -> border.Body:
  eqx = _equinox()
  abstract = eqx.filter_eval_shape(make, key=jax.random.key(0))
  name = name or border.name_of(abstract)
  _check_state(abstract, name)
  keywords = border.call_keywords(abstract, name, ("key", "deterministic", "train"))
  shapes = _nested(eqx.filter(abstract, _is_parameter))
  static = eqx.filter(_with_constants(make, abstract, name), _is_parameter, inverse=True)

  def init(key):
    return _nested(eqx.filter(make(key=key), _is_parameter))

  def call(params, x, t, cond, key):
    module = eqx.combine(_like(eqx.filter(abstract, _is_parameter), params), static)
    module = eqx.nn.inference_mode(module, value=key is None)
    options = border.flags(keywords, key)

    def one(x, t, cond, key):
      return module(x, t, cond, **options | ({"key": key} if "key" in keywords else {}))

    if not vmapped:
      return one(x, t, cond, key)
    keys = None if key is None else jax.random.split(key, len(x))
    return jax.vmap(one)(x, t, cond, keys)

  return border.Body(
    init,
    call,
    shapes,
    name,
    border.inputs_of(abstract, inputs),
    **border.paths_of(abstract, float32_paths),
    remat=border.remat_of(make),
    rebuild=lambda remat: _body(
      functools.partial(make, remat=remat), vmapped, inputs, float32_paths, name
    ),
  )


def _is_parameter(leaf: Any) -> bool:
  """Whether Equinox would train it: all inexact arrays, concrete or abstract."""
  return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _names(path: Any) -> list[str]:
  """The attributes, indices and keys on the way to a leaf."""
  return [jax.tree_util.keystr((entry,), simple=True) for entry in path]


def _nested(module: Any) -> dict[str, Any]:
  """The arrays of a module as dicts in dicts, by their attributes."""
  tree: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(module):
    *above, last = _names(path)
    functools.reduce(lambda node, name: node.setdefault(name, {}), above, tree)[last] = leaf
  return tree


def _like(module: Any, params: Params) -> Any:
  """The inverse of `_nested`: a module with these arrays."""

  def leaf(path, _):
    return functools.reduce(lambda node, name: node[name], _names(path), params)

  return jax.tree_util.tree_map_with_path(leaf, module)


# --- state and constants ------------------------------------------------------------------------


def _check_state(module: Any, name: str) -> None:
  """Raises for modules with `equinox.nn.State`."""
  eqx = _equinox()
  if isinstance(module, tuple):
    raise ValueError(
      f"What builds the module gave {len(module)} things. It must give the module alone, so "
      "without eqx.nn.make_with_state: a network has no state."
    )
  advice = "eqx.nn.GroupNorm, eqx.nn.LayerNorm or eqx.nn.RMSNorm"
  kinds = (eqx.nn.BatchNorm, eqx.nn.StateIndex)
  stateful = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda a: isinstance(a, kinds))
  for path, leaf in stateful:
    where = "/".join(_names(path))
    if isinstance(leaf, eqx.nn.BatchNorm):
      raise border.batch_statistics(name, where, "eqx.nn.BatchNorm", advice)
    if isinstance(leaf, (eqx.nn.StateIndex, eqx.nn.State)):
      raise ValueError(
        f"{name} has state in {where}, an eqx.nn.{type(leaf).__name__}. A network is a pure "
        "function of its parameters: leave the stateful layer out."
      )


def _with_constants(make: Callable[..., Any], abstract: Any, name: str) -> Any:
  """The abstract module with the values of its arrays that are no parameters."""
  is_constant = lambda a: isinstance(a, jax.ShapeDtypeStruct) and not _is_parameter(a)
  where = [i for i, a in enumerate(jax.tree.leaves(abstract)) if is_constant(a)]
  if not where:
    return abstract

  @jax.jit  # so that the parameters beside them are not computed
  def constants(key: Array) -> list[Any]:
    leaves = jax.tree.leaves(make(key=key))
    return [leaves[i] for i in where]

  values, others = constants(jax.random.key(0)), constants(jax.random.key(1))
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(abstract)]
  for i, a, b in zip(where, values, others, strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) or not np.array_equal(a, b):
      raise border.random_constant(name, "/".join(_names(paths[i])), "a floating-point array")
  leaves, treedef = jax.tree.flatten(abstract)
  for i, a in zip(where, values, strict=True):
    leaves[i] = a
  return jax.tree.unflatten(treedef, leaves)
