"""From the weights of one network to the first weights of another that has more inputs."""

import re

import jax

from cmjax.base import param_names
from cmjax.types import Params

# Layers that start at 0, and which a network may therefore have and its teacher lack.
NEW_LAYERS = (r"^map_guidance/", r"^map_segment/")


def grow(params: Params, fresh: Params) -> Params:
  """The weights of a student that is told more than its teacher: `params` where it has them.

  What `params` lacks is taken from `fresh`: that may be only the zero-initialised layers of
  guidance and segment, so the student starts as exactly the teacher's function (sCM, arXiv
  2410.11081: guidance as an input of the distilled model).

  Args:
    params: the teacher's weights.
    fresh: initial weights of the student. Both may be traced.

  Returns:
    Weights with the structure of `fresh`.

  Raises:
    ValueError: naming every weight that only one of the two networks has, other than those layers,
      or whose shape differs.

  >>> import jax.numpy as jnp
  >>> grow({"fc": jnp.ones(2)}, {"fc": jnp.zeros(2), "map_guidance": {"bias": jnp.zeros(1)}})
  {'fc': Array([1., 1.], dtype=float32), 'map_guidance': {'bias': Array([0.], dtype=float32)}}
  """
  known, wanted = param_names.by_name(params), param_names.by_name(fresh)
  errors = [f"{path} is not in this network" for path in known if path not in wanted]
  for path, a in wanted.items():
    if path in known and known[path].shape != a.shape:
      errors.append(f"{path} is {known[path].shape}, this network's {a.shape}")
    if path not in known and not any(re.search(pattern, path) for pattern in NEW_LAYERS):
      errors.append(f"{path} is missing")
  if errors:
    more = f" ... and {len(errors) - 8} more" if len(errors) > 8 else ""
    raise ValueError(
      f"These weights do not fit the network: {'; '.join(errors[:8])}{more}. Give both networks "
      "the same options; only guidance and segment may be added."
    )
  return jax.tree_util.tree_map_with_path(
    lambda path, a: known.get(param_names.name(path), a), fresh
  )
