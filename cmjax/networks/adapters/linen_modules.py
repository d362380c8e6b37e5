"""From a Flax Linen module to a `Network`."""

from collections.abc import Sequence
from typing import Any

import flax.errors
import jax
from flax import linen as nn

from cmjax.base import param_names
from cmjax.networks.adapters import border
from cmjax.types import Network


def from_linen(
  module: Any,
  *,
  shape: Sequence[int],
  num_classes: int = 0,
  inputs: Sequence[str] | None = None,
  dtype: Any = "float32",
  matmul_precision: str | None = None,
  float32_paths: Sequence[str] | None = None,
  name: str | None = None,
) -> Network:
  """A Flax Linen module as a Network.

  The module is called as `module(x, t, cond)`; see `cmjax.networks.adapters`. Randomness, with a
  key: the stream `dropout` is that key. If `__call__` takes `deterministic` or `train`, the key
  decides: without one it is called with `deterministic=True` or `train=False`. A dropout mask is a
  function of the key alone, so a jvp has the same mask in primal and tangent.

  `init(key)` gives the collection `params` as a nested dict of float32 arrays, with paths such as
  `Dense_0/kernel`. A module with other collections is refused: they are state.

  Args:
    module: an instance, `Mine(width=64)`. If it has a field `remat`, the network has that option:
      `net.at(remat=True)`.
    shape: of one sample, such as (32, 32, 3): Linen makes parameters by calling the module.
    num_classes: 0 if the network reads no label; otherwise it is called with cond["label"].
    inputs: what it reads of cond beside the label. By default the module's own `inputs`, or none.
    dtype: of the body of the network; see `from_nnx`.
    matmul_precision: of its products and convolutions; see `from_nnx`.
    float32_paths: regular expressions for the parameters that stay in float32. By default the
      module's own `float32_paths`, or none.
    name: for messages and records. By default that of the module's class.

  Raises:
    ValueError: if the module does not fit, saying what to change.

  >>> import jax, jax.numpy as jnp
  >>> from flax import linen as nn
  >>> class Mine(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x, t, cond):
  ...     return nn.Dense(2)(jnp.concatenate([x, t[:, None].astype(x.dtype)], axis=-1))
  >>> net = from_linen(Mine(), shape=(2,))
  >>> net.init(jax.random.key(0))["Dense_0"]["kernel"].shape
  (3, 2)
  """
  if not isinstance(module, nn.Module):
    got = module.__name__ if isinstance(module, type) else type(module).__name__
    raise ValueError(f"from_linen got {got}. It takes an instance of a Linen module: {got}(...).")
  body = _body(module, tuple(shape), num_classes, inputs, float32_paths, name)
  net = border.network(body, dtype=dtype, matmul_precision=matmul_precision)
  return border.tried(net, body.shapes, shape, num_classes)


def _body(module, shape, num_classes, inputs, float32_paths, name) -> border.Body:
  name = name or border.name_of(module)
  keywords = border.call_keywords(module, name, ("deterministic", "train"))
  inputs = border.inputs_of(module, inputs)

  def variables(key):
    x, t, cond = border.example(shape, num_classes, inputs)
    # Of arrays with metadata of their layout, the arrays: layouts come from the paths.
    return nn.meta.unbox(module.init(key, x, t, cond, **border.flags(keywords, None)))

  def init(key):
    return variables(key).get("params", {})

  def call(params, x, t, cond, key):
    rngs = None if key is None else {"dropout": key}
    options = border.flags(keywords, key)
    try:
      return module.apply({"params": params}, x, t, cond, rngs=rngs, **options)
    except flax.errors.InvalidRngError as error:
      raise ValueError(
        f"{name} draws random numbers where it has none: {error}. The only stream is 'dropout', "
        "and only with a key. Take `deterministic` or `train` as an argument of __call__, and pass "
        "it on."
      ) from None

  shapes = jax.eval_shape(variables, jax.random.key(0))
  _check_collections(shapes, name)
  return border.Body(
    init,
    call,
    shapes.get("params", {}),
    name,
    inputs,
    **border.paths_of(module, float32_paths),
    remat=getattr(module, "remat", None) if "remat" in module.__dataclass_fields__ else None,
    rebuild=lambda remat: _body(
      module.clone(remat=remat), shape, num_classes, inputs, float32_paths, name
    ),
  )


def _check_collections(shapes: dict[str, Any], name: str) -> None:
  """Raises for collections other than params."""
  for collection in sorted(set(shapes) - {"params"}):
    path = next(iter(param_names.by_name(shapes[collection])))
    if collection == "batch_stats":
      where = path.rpartition("/")[0] or path
      instead = "nn.GroupNorm, nn.LayerNorm or nn.RMSNorm"
      raise border.batch_statistics(name, where, "the collection batch_stats", instead)
    raise ValueError(
      f"{name} has state in the collection {collection!r} ({path}). A network is a pure function "
      "of its parameters: use self.param for what is trained, and compute constants in __call__."
    )
