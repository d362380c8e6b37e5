"""What parameters are called: the way to a leaf of a tree, as `enc/32x32_block0/conv0/kernel`."""

from typing import Any

import jax


def name(path: Any, separator: str = "/") -> str:
  """The name of one leaf, of its path as `jax.tree_util.tree_map_with_path` gives it."""
  return jax.tree_util.keystr(path, simple=True, separator=separator)


def by_name(tree: Any) -> dict[str, Any]:
  """{name: leaf} of a tree, in its order.

  >>> by_name({"conv": {"kernel": 1, "bias": 2}})
  {'conv/bias': 2, 'conv/kernel': 1}
  """
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
