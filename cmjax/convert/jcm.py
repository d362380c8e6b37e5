"""The names of jcm, the JAX code of Song et al. 2023: its NCSN++ is EDM's in other words.

Flax counted its layers in the order in which they are called; here each gets the name that EDM
gives it, and the layout of PyTorch, so that one detection and one conversion serve both.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

# jcm trained on CIFAR-10 alone, with attention at 16 x 16; the tensors do not say either.
RESOLUTION, ATTN_RESOLUTION = 32, 16
# {jcm's: EDM's} of the layers of one block, and of those outside all blocks.
LAYERS = {
  "GroupNorm_0": "norm0",
  "Conv_0": "conv0",
  "Dense_0": "affine",
  "GroupNorm_1": "norm1",
  "Conv_1": "conv1",
  "Conv_2": "skip",
}
OUTER = {
  "Dense_0": "map_layer0",
  "Dense_1": "map_layer1",
  "Conv_0": f"enc.{RESOLUTION}x{RESOLUTION}_conv",
  "GroupNorm_0": f"dec.{RESOLUTION}x{RESOLUTION}_aux_norm",
  "Conv_1": f"dec.{RESOLUTION}x{RESOLUTION}_aux_conv",
}
FREQS = "GaussianFourierProjection_0/W"


def is_jcm(names: Iterable[str]) -> bool:
  """Whether these are the names of jcm's NCSN++."""
  return any(name.startswith("ResnetBlockBigGANpp_0/") for name in names)


def as_edm(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """jcm's parameters under the names and in the layout of EDM's NCSN++.

  Args:
    tensors: by jcm's names, "ResnetBlockBigGANpp_0/Conv_0/kernel" and so on.

  Raises:
    ValueError: for tensors that are not those of such a network.
  """
  modules = _modules({name: array for name, array in tensors.items() if name != FREQS})
  found = {"model.map_noise.freqs": tensors[FREQS]} if FREQS in tensors else {}
  layers = dict(OUTER)
  for block, attention, name in _plan(modules):
    layers |= {f"ResnetBlockBigGANpp_{block}/{k}": f"{name}.{v}" for k, v in LAYERS.items()}
    if attention is not None:
      theirs = f"AttnBlockpp_{attention}"
      found |= _attention([modules.pop(f"{theirs}/NIN_{i}", {}) for i in range(4)], f"model.{name}")
      layers[f"{theirs}/GroupNorm_0"] = f"{name}.norm2"
  for i in range(sum(name.startswith("Downsample_") for name in modules)):
    side = RESOLUTION >> (i + 1)
    layers[f"Downsample_{i}/Conv2d_0"] = f"enc.{side}x{side}_aux_residual"
  for theirs, ours in layers.items():
    for leaf, array in modules.pop(theirs, {}).items():
      found[f"model.{ours}.{'bias' if leaf == 'bias' else 'weight'}"] = _transposed(array)
  if modules:
    raise ValueError(f"it has jcm's names, but {sorted(modules)[0]} is not in its NCSN++")
  return found


def _modules(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  """{module: {leaf: array}}."""
  modules: dict[str, dict[str, np.ndarray]] = {}
  for name, array in tensors.items():
    module, _, leaf = name.rpartition("/")
    modules.setdefault(module, {})[leaf] = array
  return modules


def _plan(modules: Iterable[str]) -> Iterator[tuple[int, int | None, str]]:
  """(block, attention or None, EDM's name of the block) in the order in which jcm calls them."""
  count = lambda kind: len({m.split("/")[0] for m in modules if m.startswith(f"{kind}_")})
  blocks, levels = count("ResnetBlockBigGANpp"), 1 + count("Downsample")
  num_blocks, rest = divmod(blocks - 3 * levels, 2 * levels)
  if rest or num_blocks < 1 or levels > 6:
    raise ValueError(f"it has jcm's names, but {blocks} blocks on {levels} levels are no NCSN++")
  names = []
  for i in range(levels):
    side = RESOLUTION >> i
    names += [(f"enc.{side}x{side}_block{j}", side == ATTN_RESOLUTION) for j in range(num_blocks)]
    names += [(f"enc.{side // 2}x{side // 2}_down", False)] if i < levels - 1 else []
  names += [(f"dec.{side}x{side}_in0", True), (f"dec.{side}x{side}_in1", False)]
  for i in reversed(range(levels)):
    side = RESOLUTION >> i
    for j in range(num_blocks + 1):
      names.append((f"dec.{side}x{side}_block{j}", side == ATTN_RESOLUTION and j == num_blocks))
    names += [(f"dec.{2 * side}x{2 * side}_up", False)] if i else []
  attentions = itertools.count()
  for block, (name, attends) in enumerate(names):
    yield block, next(attentions) if attends else None, name


def _attention(layers: list[dict[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
  """q, k, v and the projection [in, out] as EDM's qkv, with q, k and v fastest, and its proj."""
  if any(set(layer) != {"W", "b"} or layer["W"].ndim != 2 for layer in layers):
    raise ValueError(f"it has jcm's names, but no attention NIN_0 to NIN_3 for {name}")
  if len({layer["W"].shape for layer in layers}) > 1 or layers[0]["b"].ndim != 1:
    raise ValueError(f"the attention of {name} has parts of unequal shapes")
  *qkv, proj = layers
  weight = np.stack([layer["W"].T for layer in qkv], axis=1)
  return {
    f"{name}.qkv.weight": weight.reshape(-1, weight.shape[-1])[:, :, None, None],
    f"{name}.qkv.bias": np.stack([layer["b"] for layer in qkv], axis=1).reshape(-1),
    f"{name}.proj.weight": proj["W"].T[:, :, None, None],
    f"{name}.proj.bias": proj["b"],
  }


def _transposed(array: np.ndarray) -> np.ndarray:
  """HWIO as OIHW, [in, out] as [out, in]."""
  axes = {4: (3, 2, 0, 1), 2: (1, 0)}
  return array.transpose(axes.get(array.ndim, range(array.ndim)))
