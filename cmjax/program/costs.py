"""What a compiled program costs, read off the program: FLOPs, bytes between chips, seconds at best.

XLA's own counts take the body of a loop once, however often it runs. Here FLOPs are counted in the
jaxpr and traffic in the compiled text, each times the trips of the loops around it.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

# Why a compiler refuses a program: what it wanted of a chip's memory, in its own words.
_WANTED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


class Chip(NamedTuple):
  """What one chip can do. Rates are peaks, which no program reaches.

  Attributes:
    kind: of device, as it is in topologies: v5p, h100.
    memory: bytes.
    flops: multiplications and additions a second, in bfloat16, dense.
    bandwidth: bytes a second between memory and cores.
    links: bytes a second that it sends to the chips that it is linked with.
    linked: how many chips are linked with one another; beyond, they are on a network.
    network: bytes a second that it sends there.
    float32: products of float32 by default, as a share of `flops`.
  """

  kind: str
  memory: float
  flops: float
  bandwidth: float
  links: float
  linked: int = 10**6
  network: float = 0.0
  float32: float = 1.0


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; of the bidirectional bandwidth of the links a
# chip sends half, and XLA's products of float32 are by default one pass in bfloat16. GPUs: NVIDIA's
# data sheets of the SXM boards (A100 80 GB, H100, H200), without sparsity, NVLink one way; a node
# of DGX or HGX has eight, with one network port a GPU (200 Gb/s A100, 400 Gb/s after), and float32
# goes through TF32 at half the rate. L4: its data sheet, whose 242 TFLOPS are with sparsity; RTX
# 4090: NVIDIA's Ada architecture white paper, bfloat16 with sums in float32. Both on PCIe 4.0.
CHIPS = {
  chip.kind: chip
  for chip in (
    Chip("v4", 32e9, 275e12, 1228e9, 300e9),
    Chip("v5e", 16e9, 197e12, 819e9, 200e9),
    Chip("v5p", 95e9, 459e12, 2765e9, 600e9),
    Chip("v6e", 32e9, 918e12, 1638e9, 400e9),
    Chip("a100", 80e9, 312e12, 2039e9, 300e9, 8, 25e9, 0.5),
    Chip("h100", 80e9, 989e12, 3350e9, 450e9, 8, 50e9, 0.5),
    Chip("h200", 141e9, 989e12, 4800e9, 450e9, 8, 50e9, 0.5),
    Chip("l4", 24e9, 121e12, 300e9, 32e9, 8, 12.5e9, 0.5),
    Chip("4090", 24e9, 165.2e12, 1008e9, 32e9, 8, 12.5e9, 0.5),
  )
}
GPUS = ("a100", "h100", "h200", "l4", "4090")


class Traffic(NamedTuple):
  """The collectives of one kind in a step: how many, bytes of the arrays, bytes a chip sends."""

  number: int
  bytes: float
  sent: float


def count_flops(jaxpr: core.Jaxpr, *, loops: bool = True) -> dict[str, float]:
  """FLOPs of products and convolutions by dtype of the operands, over all devices.

  A multiplication and an addition are two. Positions where a convolution meets padding or the gaps
  of a dilation do not count, as in XLA. Of branches the largest counts; a `while_loop`, whose trips
  are not known, counts once.

  Args:
    jaxpr: of a trace, as it was before it was split over devices.
    loops: False counts the body of a scan once, as XLA does.
  """
  total = defaultdict(float)
  eqns: Any = jaxpr.eqns
  for eqn in eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
      total[eqn.invars[0].aval.dtype.name] += _dot_flops(eqn)
      continue
    if name == "conv_general_dilated":
      total[eqn.invars[0].aval.dtype.name] += _conv_flops(eqn)
      continue
    inner = [count_flops(sub, loops=loops) for sub in _inner(name, params)]
    if name == "cond":
      inner = [max(inner, key=lambda flops: sum(flops.values()))]
    times = _times(name, params, loops)
    for flops in inner:
      for dtype, value in flops.items():
        total[dtype] += times * value
  return dict(total)


def _inner(name: str, params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
  """The jaxprs that run where an equation stands."""
  # Others are there for derivatives that are taken already: a linear call's transpose, a rule.
  only = {"linear_call": "callee", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
  chosen = [params[only[name]]] if name in only else params.values()
  for value in chosen:
    for item in value if isinstance(value, (tuple, list)) else (value,):
      item = getattr(item, "jaxpr", item)  # of one that is closed over its constants
      if isinstance(item, core.Jaxpr):
        yield item


def _times(name: str, params: Mapping[str, Any], loops: bool) -> int:
  """How often the inside of an equation runs."""
  if name == "scan":
    return params["length"] if loops else 1
  if name == "pallas_call":  # a program of the grid is one of many, as of a scan
    return math.prod(params["grid_mapping"].grid)
  if name == "shard_map":  # its inside has the shapes of one device
    return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  return 1


def _dot_flops(eqn: Any) -> float:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape = eqn.invars[0].aval.shape
  return 2.0 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _conv_flops(eqn: Any) -> float:
  params, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars)
  numbers, out = params["dimension_numbers"], eqn.outvars[0].aval.shape
  positions = 1.0
  for i, padding in enumerate(params["padding"]):
    positions *= _meetings(
      lhs[numbers.lhs_spec[2 + i]],
      rhs[numbers.rhs_spec[2 + i]],
      out[numbers.out_spec[2 + i]],
      stride=params["window_strides"][i],
      padding=padding[0],
      base=params["lhs_dilation"][i],
      window=params["rhs_dilation"][i],
    )
  batch, features = lhs[numbers.lhs_spec[0]], rhs[numbers.rhs_spec[1]]
  return 2.0 * positions * features * out[numbers.out_spec[1]] * batch / params["batch_group_count"]


def _meetings(
  size: int, taps: int, out: int, *, stride: int, padding: int, base: int, window: int
) -> int:
  """Along one axis, how often a tap of the kernel meets a number of the input."""
  at = stride * np.arange(out)[:, None] + window * np.arange(taps) - padding
  return int(np.sum((at >= 0) & (at % base == 0) & (at // base < size)))


def count_collectives(text: str, num_devices: int) -> dict[str, Traffic]:
  """The traffic of one step between devices, by kind, from the compiled program's text.

  Bytes are those of the whole array on its way: what is reduced, what is gathered. What a chip of n
  sends is what a ring needs: 2 (n - 1) / n of an array that is reduced, (n - 1) / n of one that is
  gathered, scattered or exchanged, all of one that is passed on.

  Args:
    text: `compiled.as_text()`.
    num_devices: where a collective does not name its groups.
  """
  computations, entry = _computations(text)
  runs = _runs(computations, entry)
  found = defaultdict(lambda: np.zeros(3))
  for name, lines in computations.items():
    for line in lines if runs[name] else ():
      if one := _collective(line, name, num_devices):
        kind, size, sent = one
        found[kind] += runs[name] * np.array([1, size, sent])
  return {
    kind: Traffic(int(found[kind][0]), *map(float, found[kind][1:]))
    for kind in COLLECTIVES
    if kind in found
  }


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLEE = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation|called_computations|"
  r"branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """{name: lines} of an HLO module, and the name of its entry."""
  computations, entry, lines = {}, "", []
  for line in text.splitlines():
    if match := _HEADER.match(line):
      lines = computations[match[2]] = []
      entry = match[2] if match[1] else entry
    elif line.startswith(" "):
      lines.append(line)
  return computations, entry


def _runs(computations: Mapping[str, list[str]], entry: str) -> Counter:
  """How often each computation runs in one call of the entry; every branch counts as taken."""
  runs = Counter()

  def visit(name, times):
    runs[name] += times
    for line in computations.get(name, ()):
      callees = _CALLEE.findall(line)
      trips = _trips(line, computations) if callees and " while(" in line else 1
      for key, names in callees:
        for callee in re.findall(r"[\w.\-]+", names):
          # What is applied to numbers, as the sum of an all-reduce, holds no collectives.
          if callee in computations and (key != "to_apply" or " call(" in line):
            visit(callee, times * trips)

  visit(entry, 1)
  return runs


def _trips(line: str, computations: Mapping[str, list[str]]) -> int:
  """The trips of a while loop: as XLA says, or what its condition counts up to; else 1."""
  if known := _TRIPS.search(line):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", line)
  inside = "\n".join(computations.get(condition[1], ())) if condition else ""
  limits = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", inside)
  return int(limits[0]) if len(limits) == 1 and "direction=LT" in inside else 1


def _collective(line: str, inside: str, num_devices: int) -> tuple[str, float, float] | None:
  """(kind, bytes of the whole array, bytes a chip sends) of a line; None if it is another."""
  match = _COLLECTIVE.search(line)
  if not match:
    return None
  result, kind, start = match.groups()
  arrays = _ARRAY.findall(result.replace("u32[]", ""))  # which are handles
  size, n = sum(map(_bytes, arrays)), _group_size(line, num_devices)
  if start and kind == "all-gather":  # the result holds the shards beside what they become
    size *= n / (n + 1)
  elif start and kind == "collective-permute":
    size /= 2
  if kind == "all-reduce" and "all-reduce-scatter" in inside:
    kind = "reduce-scatter"  # fused by the TPU's compiler, with the slice that a chip keeps
  elif kind == "reduce-scatter":
    size *= n
  if kind == "collective-permute":
    return kind, size, size
  return kind, size, (2 if kind == "all-reduce" else 1) * size * (n - 1) / n


def _bytes(array: tuple[str, str]) -> float:
  dtype, dims = array
  bits = re.search(r"\d+", dtype)
  width = int(bits[0]) / 8 if bits else 1.0
  return width * math.prod(int(d) for d in dims.split(",") if d)


def _group_size(line: str, num_devices: int) -> int:
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return len(listed[1].split(","))
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
    return int(iota[2])
  return num_devices


def seconds(
  chip: Chip, *, flops: Mapping[str, float], moved: float, sent: float, num_chips: int
) -> dict[str, float]:
  """The least seconds that each part of a step takes on one chip: flops, memory, links.

  Args:
    chip: with its peaks.
    flops: of one chip, by dtype.
    moved: bytes between its memory and its cores.
    sent: bytes that it sends to others.
    num_chips: how many there are: of those beyond what links join, the network sets the pace.
  """
  rate = {"float32": chip.float32}
  links = chip.links if num_chips <= chip.linked else chip.network
  return {
    "flops": sum(f / (chip.flops * rate.get(dtype, 1.0)) for dtype, f in flops.items()),
    "memory": moved / chip.bandwidth,
    "links": sent / links,
  }


def wanted_memory(message: str) -> float | None:
  """The bytes that a program wanted, from the message with which XLA refused it, if it says so."""
  match = _WANTED.search(message)
  if not match:
    return None
  return float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1 if match[2] else 0)
