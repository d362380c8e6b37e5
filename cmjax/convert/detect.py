"""Which network these tensors are: from names and shapes, compared with what the file says."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cmjax.base import json_files
from cmjax.base.printable import shown
from cmjax.convert import jcm
from cmjax.convert.files import Weights
from cmjax.convert.names import FAMILIES, OF_NETWORK

# The metadata of a file that cmjax exported: its config.net and sigma_data, as JSON.
METADATA = "cmjax"
# Modules around or instead of a network, and whether its output is EDM's F.
SUPPORTED = ("EDMPrecond", "Precond")
INNER = ("SongUNet", "DhariwalUNet", "UNet")
# {what a module calls its options: what we do}, where the tensors say it as well.
OPTIONS = {
  "img_resolution": "resolution",
  "img_channels": "in_channels",
  "label_dim": "num_classes",
  "model_channels": "channels",
  "channel_mult": "channel_mult",
  "num_blocks": "num_blocks",
  "attn_resolutions": "attn_resolutions",
}
# What tensors do not say.
SILENT = ("modulation", "fir")
# Of what an exported file says of its network: keys that count layers, the largest other number.
LAYERS, MAX_WIDTH, MAX_LEVELS = ("depth", "num_blocks"), 2**24, 64
FIRST = re.compile(r"(.*?)enc\.(\d{1,5})x\2_conv\.weight")
BLOCK = re.compile(r"enc\.(\d{1,5})x\1_block(\d{1,3})\.")
Shapes = Mapping[str, tuple[int, ...]]


class Found(NamedTuple):
  """A network: its config, and its tensors under the names of its family.

  Attributes:
    family: of `names.FAMILIES`.
    net: the section `net` of a config.
    sigma_data: std of the data that it was trained on.
    fir: taps of its resampling filter.
    tensors: with the family's prefix.
  """

  family: str
  net: dict[str, Any]
  sigma_data: float
  fir: tuple[int, ...]
  tensors: dict[str, np.ndarray]


def detect(weights: Weights) -> Found:
  """The network of these weights.

  Of a file that cmjax exported from a network of its own (DiT, MLP), the metadata say which it is.
  DDPM++, NCSN++, ADM and EDM2 are told apart by names alone, widths and depth by shapes. What the
  file says of itself (a module's arguments) is compared, and only believed where tensors are
  silent: dropout, sigma_data.

  Raises:
    ValueError: naming what is missing, unexpected or contradictory, with got and expected.
  """
  tensors, options = dict(weights.tensors), weights.options
  _check_class(weights.class_name)
  if METADATA in options:
    said, sigma_data = _exported(options[METADATA], len(tensors))
    if OF_NETWORK.get(str(said.get("name")), "cmjax") == "cmjax":
      return Found("cmjax", said, sigma_data, (1, 1), tensors)
  if jcm.is_jcm(tensors):
    tensors = jcm.as_edm(tensors)
  tensors = _with_prefix(tensors)
  shapes = {_bare(name): array.shape for name, array in tensors.items()}
  family = "edm2" if _is_edm2(shapes) else "edm"
  net = _edm2(shapes) if family == "edm2" else _edm(shapes)
  if METADATA in options:
    said, sigma_data = _exported(options[METADATA], len(tensors))
    _compare(net, said, {key: key for key in net if key not in SILENT})
    net = said  # what it leaves out has the default that it was trained with
  else:
    _compare(net, options, OPTIONS)
    net |= {"dropout": _number(options, "dropout", 0.0), "preconditioning": "edm"}
    net["dtype"], sigma_data = "float32", _number(options, "sigma_data", 0.5)
  return Found(family, net, sigma_data, tuple(net.get("fir", (1, 1))), tensors)


def _check_class(name: str) -> None:
  if name and name not in (*SUPPORTED, *INNER):
    raise ValueError(
      f"its network is a {shown(name)}, of which cmjax knows no preconditioning. It knows: "
      f"{', '.join((*SUPPORTED, *INNER))}."
    )


def _exported(text: Any, num_tensors: int) -> tuple[dict[str, Any], float]:
  """What a file that cmjax exported says of its network: config.net, sigma_data."""
  try:
    said = json_files.parse(text.encode())
    net = {k: tuple(v) if isinstance(v, list) else v for k, v in said["net"].items()}
    sigma_data = float(said["sigma_data"])
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"its metadata {METADATA!r} is none of ours: {type(error).__name__}") from None
  for key, value in net.items():
    numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int)]
    # Building a network goes through its layers one by one, and each has a tensor.
    most = num_tensors if key in LAYERS else MAX_WIDTH
    if any(n > most for n in numbers) or len(numbers) > MAX_LEVELS:
      raise ValueError(f"it says {key}={shown(value)}, and has {num_tensors} tensors")
  return net, sigma_data


def _with_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors with the prefix that their family has, whatever stood there."""
  first = [match for match in map(FIRST.fullmatch, tensors) if match]
  if not first:
    example = ", ".join(shown(name) for name in list(tensors)[:3])
    raise ValueError(
      "it is no network of EDM, EDM2 or jcm: expected a tensor enc.RxR_conv.weight, got "
      f"{len(tensors)} others: {example}, ..."
    )
  prefix = first[0][1]
  family = FAMILIES["edm2" if any("conv_res0" in name for name in tensors) else "edm"]
  outer = prefix.removesuffix(family.prefix)
  found: dict[str, np.ndarray] = {}
  for name, array in tensors.items():
    if name.startswith(prefix):
      name = family.prefix + name[len(prefix) :]
    elif outer and name.startswith(outer):
      name = name[len(outer) :]
    if name in found:
      raise ValueError(f"two tensors are {name}")
    # FastGen writes EDM2's gains with an axis.
    found[name] = array.reshape(()) if name.endswith("gain") and array.shape == (1,) else array
  return found


def _bare(name: str) -> str:
  for family in FAMILIES.values():
    name = name.removeprefix(family.prefix)
  return name


def _is_edm2(shapes: Shapes) -> bool:
  return any(name.endswith("conv_res0.weight") for name in shapes)


def _edm(shapes: Shapes) -> dict[str, Any]:
  """DDPM++, NCSN++ or ADM."""
  adm, residual = "out_conv.weight" in shapes, any("aux_residual" in name for name in shapes)
  embed, noise = _shape(shapes, "map_layer0.weight", 2)
  first = _shape(shapes, _first(shapes), 4)
  channels = noise if adm else first[0]
  plan = _plan(shapes, channels, last="conv1", qkv="qkv")
  side = plan["resolution"]
  affine = _shape(shapes, f"enc.{side}x{side}_block0.affine.weight", 2)[0]
  width = _shape(shapes, f"enc.{side}x{side}_block0.conv1.weight", 4)[0]
  wide = _ratio(affine, width, f"enc.{side}x{side}_block0.affine.weight")
  if wide > 2:
    raise ValueError(f"a block's affine layer has {wide} numbers per channel; expected 1 or 2")
  net = {
    "name": "adm" if adm else "ddpmpp",
    **plan,
    "in_channels": first[1],
    "channels": channels,
    "num_classes": _shape(shapes, "map_label.weight", 2, optional=True)[1],
    "augment_dim": _shape(shapes, "map_augment.weight", 2, optional=True)[1],
    "embed_mult": _ratio(embed, channels, "map_layer0.weight"),
    "modulation": "additive" if wide == 1 else "scale_shift",
    "embedding": "fourier" if "map_noise.freqs" in shapes else "positional",
    **_conditions(shapes),
  }
  if not adm:
    net["noise_mult"] = _ratio(noise, channels, "map_layer0.weight")
    net["encoder"] = "residual" if residual else "standard"
    net["fir"] = _fir(shapes, residual)
  return net


def _fir(shapes: Shapes, residual: bool) -> tuple[int, ...]:
  sizes = {shape[-1:] for name, shape in shapes.items() if name.endswith("resample_filter")}
  if not sizes:
    return (1, 3, 3, 1) if residual else (1, 1)
  known: dict[tuple[int, ...], tuple[int, ...]] = {(2,): (1, 1), (4,): (1, 3, 3, 1)}
  if len(sizes) > 1 or next(iter(sizes)) not in known:
    raise ValueError(f"its resampling filters have {sorted(sizes)} taps; expected 2 or 4")
  return known[next(iter(sizes))]


def _edm2(shapes: Shapes) -> dict[str, Any]:
  embed, channels = _shape(shapes, "emb_noise.weight", 2)
  plan = _plan(shapes, channels, last="conv_res1", qkv="attn_qkv")
  block = f"enc.{plan['resolution']}x{plan['resolution']}_block0"
  width = _shape(shapes, f"{block}.conv_res1.weight", 4)[0]
  wide = _ratio(_shape(shapes, f"{block}.emb_linear.weight", 2)[0], width, f"{block}.emb_linear")
  gain = f"{block}.emb_gain" in shapes
  return {
    "name": "edm2",
    **plan,
    "in_channels": _shape(shapes, _first(shapes), 4)[1] - 1,
    "channels": channels,
    "num_classes": _shape(shapes, "emb_label.weight", 2, optional=True)[1],
    "embed_mult": _ratio(embed, channels, "emb_noise.weight"),
    "modulation": "edm2" if gain else ("pnorm_scale", "pnorm_scale_shift")[wide > 1],
    "embedding": "mp_fourier" if "emb_fourier.freqs" in shapes else "positional",
    **_conditions(shapes),
  }


def _conditions(shapes: Shapes) -> dict[str, bool]:
  extra = ("guidance", "segment")
  return {key: True for key in extra if any(name.startswith(f"map_{key}.") for name in shapes)}


def _plan(shapes: Shapes, channels: int, *, last: str, qkv: str) -> dict[str, Any]:
  """Resolution, widths, depth and attention, from the blocks of the encoder."""
  blocks = {(int(m[1]), int(m[2])) for m in map(BLOCK.match, shapes) if m}
  sides = sorted({side for side, _ in blocks}, reverse=True)
  first = int(_first(shapes).split(".")[1].split("x")[0])
  if not sides or sides != [first >> i for i in range(len(sides))]:
    raise ValueError(
      f"its encoder begins at {first}x{first} and has blocks at {sides}; expected each resolution "
      "to be half of the one before"
    )
  num_blocks = 1 + max(i for side, i in blocks if side == first)
  for side, i in itertools.product(sides, range(num_blocks)):
    if (side, i) not in blocks:
      raise ValueError(f"enc.{side}x{side}_block{i} is missing; {first}x{first} has {num_blocks}")
  names = [f"enc.{side}x{side}_block0.{last}.weight" for side in sides]
  return {
    "resolution": first,
    "channel_mult": tuple(_ratio(_shape(shapes, n, 4)[0], channels, n) for n in names),
    "num_blocks": num_blocks,
    "attn_resolutions": tuple(
      side for side in sides if f"enc.{side}x{side}_block0.{qkv}.weight" in shapes
    ),
  }


def _first(shapes: Shapes) -> str:
  """The name of the first convolution: the one at the highest resolution."""
  sides = {int(match[2]): match[0] for match in map(FIRST.fullmatch, shapes) if match}
  return sides[max(sides)]


def _shape(shapes: Shapes, name: str, ndim: int, *, optional: bool = False) -> tuple[int, ...]:
  if optional and name not in shapes:
    return (0,) * ndim
  shape = shapes.get(name)
  if shape is None:
    raise ValueError(f"{name} is missing, expected {ndim} axes")
  if len(shape) != ndim or 0 in shape:
    raise ValueError(f"{name} is {shape}, expected {ndim} axes and none of size 0")
  return shape


def _ratio(size: int, channels: int, name: str) -> int:
  if size % channels or not size:
    raise ValueError(f"{name} has {size} rows, expected a multiple of {channels} channels")
  return size // channels


def _compare(net: dict[str, Any], said: Mapping[str, Any], names: Mapping[str, str]) -> None:
  """Raises where what a file says of its network contradicts its tensors."""
  for theirs, ours in names.items():
    value = said.get(theirs)
    if value is None or ours not in net:
      continue
    value = tuple(value) if isinstance(value, list | tuple) else value
    # Resolutions with attention may be listed that do not occur, and in any order.
    more = ours == "attn_resolutions" and isinstance(value, tuple)
    if not (set(net[ours]) <= set(value) if more else value == net[ours]):
      raise ValueError(
        f"it says {theirs}={shown(value)}, but its tensors are of {ours}={shown(net[ours])}"
      )


def _number(options: Mapping[str, Any], key: str, default: float) -> float:
  value = options.get(key, default)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"it says {key}={shown(value)}, not a number")
  return float(value)
