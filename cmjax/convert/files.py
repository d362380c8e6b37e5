"""A foreign file, of whatever kind: which networks are in it, each as tensors by name.

The kind is found from the first bytes. Of a pickle or a .pt file, nested dicts and modules are
searched; what is not a network (optimizer, data set, loss) is left out.
"""

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmjax.base import paths
from cmjax.base.printable import shown
from cmjax.convert import pickles, tensor_files, torch_files
from cmjax.convert.allowed import Array, Record
from cmjax.convert.tensors import Budget, Tensor

# Networks of an average, where a file has others beside.
AVERAGES = ("ema", "params_ema", "ema_model", "model_ema")
MAX_LEVELS, MAX_DEPTH, MAX_MODULES, MIN_TENSORS = 200, 32, 100_000, 8


class Weights(NamedTuple):
  """One network in a file.

  Attributes:
    tensors: arrays by name, as the file has them.
    class_name: of the module, where the file says it.
    options: what the module was constructed with and what it set itself to, plain values only.
  """

  tensors: dict[str, np.ndarray]
  class_name: str = ""
  options: dict[str, Any] = {}


class Foreign(NamedTuple):
  """A file: its kind in words, and the networks in it by where they are."""

  kind: str
  networks: dict[str, Weights]


def read(path: str | Path) -> Foreign:
  """Reads a file of weights: EDM's and EDM2's pickles, torch's .pt, safetensors, flax's msgpack.

  Raises:
    ValueError: in one line, with the path: for a file of another kind, a broken or a hostile one.
      Nothing in it is executed.
  """
  path = paths.local(path)
  if path.is_dir():
    raise ValueError(f"{path} is a folder: give the file of the weights.")
  if not path.is_file():
    raise ValueError(f"{path} does not exist.")
  try:
    return _read(path)
  except ValueError as error:
    message = " ".join(str(error).split())
    raise ValueError(f"{path}: {message[:500]}") from None


def digest(path: str | Path) -> str:
  """The sha256 of a file."""
  with paths.local(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def choose(networks: Mapping[str, Weights], name: str | None) -> str:
  """The key of the network to take: `name`, or the only one, or the only average.

  Raises:
    ValueError: if there is none, or no such one, or several to choose from.
  """
  if not networks:
    raise ValueError(f"there is no network in it: no dict of {MIN_TENSORS} tensors or more")
  if name is not None:
    if name not in networks:
      raise ValueError(f"it has no {shown(name)}; choose by --ema from: {_listed(networks)}")
    return name
  if len(networks) == 1:
    return next(iter(networks))
  averages = [key for key in networks if key.split(".")[-1] in AVERAGES]
  if len(averages) != 1:
    raise ValueError(f"it has several networks; choose by --ema from: {_listed(networks)}")
  return averages[0]


def _listed(networks: Mapping[str, Weights]) -> str:
  return ", ".join(shown(key) for key in list(networks)[:20])


def _read(path: Path) -> Foreign:
  size = path.stat().st_size
  if not size:
    raise ValueError("it is empty")
  with path.open("rb") as file:
    start = file.read(256)
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  budget = Budget(size)
  # Of a sound one four bytes of the length are 0; a broken one should still be named as such.
  sound, text = start[4:8] == bytes(4), start[:8].isascii()
  if start[8:9] == b"{" and (sound or not text):
    found, metadata = tensor_files.read_safetensors(path)
    networks = {"": Weights(found, options=dict(metadata))} if found else {}
    return Foreign("safetensors", _checked(networks, size))
  if start[:4] == b"PK\x03\x04":
    found = torch_files.read_zip(path, data, budget)
    return Foreign("torch file (zip)", _networks(found, size))
  if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
    found = pickles.read(data, budget)
    if type(found) is int and found == pickles.LEGACY_MAGIC:
      found = pickles.read_legacy(data, budget)
      return Foreign("torch file (legacy)", _networks(found, size))
    return Foreign("pickle", _networks(found, size))
  if 0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF):
    tree = tensor_files.read_msgpack(data[:])
    return Foreign("flax msgpack", _checked(dict(_flax_networks(tree)), size))
  raise ValueError(_what_else(start))


def _what_else(start: bytes) -> str:
  """What a file is that is none of those we read."""
  text = start.lstrip().lower()
  if text.startswith((b"<!doctype", b"<html", b"<?xml")):
    return "it is a web page, not weights: the download failed, or needs a login"
  if text.startswith(b"version https://git-lfs"):
    return "it is a git-lfs pointer, not the weights themselves: run `git lfs pull`"
  return (
    f"its first bytes {start[:8]!r} are those of no known kind: EDM's or EDM2's .pkl, torch's .pt, "
    ".safetensors, or flax's msgpack"
  )


# --- pickles and torch ----------------------------------------------------------------------------


def _networks(found: Any, file_size: int) -> dict[str, Weights]:
  _check_levels(found)
  return _checked(dict(_search(found, (), {id(found)})), file_size)


def _check_levels(root: Any) -> None:
  """Raises ValueError if objects lie in each other more than `MAX_LEVELS` deep.

  Level by level and each object once, so that neither depth nor repetition costs anything.
  """
  level, seen = [root], {id(root)}
  for _ in range(MAX_LEVELS):
    inside = {id(child): child for value in level for child in _children(value)}
    level = [child for key, child in inside.items() if key not in seen]
    if not level:
      return
    seen.update(inside)
  raise ValueError(f"its objects are nested more than {MAX_LEVELS} deep")


def _children(value: Any) -> Any:
  if isinstance(value, Record):
    return (value.state,)
  if isinstance(value, dict):
    return value.values()
  return value if isinstance(value, list | tuple) else ()


def _checked(networks: dict[str, Weights], file_size: int) -> dict[str, Weights]:
  """The networks, if none has more bytes than the file: one storage can be named a million times.

  Weights that are tied are there once and count twice; no network ties more than half of its own.
  """
  for key, weights in networks.items():
    total = sum(array.nbytes for array in weights.tensors.values())
    if total > 2 * file_size:
      raise ValueError(
        f"{shown(key)} has {total} bytes of tensors, in a file of {file_size}: a bomb"
      )
  return networks


def _search(found: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Weights]]:
  """Every network in nested dicts and lists, with its place; each object once."""
  if isinstance(found, Record) and "_modules" in found.state:
    walk = _module_tensors(found, "", 0, [MAX_MODULES])
    weights = Weights(_unique(walk), found.name, _options(found.state))
    if len(weights.tensors) >= MIN_TENSORS:
      yield ".".join(path), weights
    return
  if isinstance(found, list):
    found = {str(i): value for i, value in enumerate(found[:100])}
  if not isinstance(found, dict) or len(path) > 4:
    return
  own = {key: value for key, value in found.items() if _is_tensor(value)}
  if len(own) >= MIN_TENSORS:
    yield ".".join(path), Weights({_name(key): _array(value) for key, value in own.items()})
  for key, value in found.items():
    if isinstance(value, dict | list | Record) and id(value) not in seen:
      seen.add(id(value))
      yield from _search(value, (*path, shown(key).strip("'")), seen)


def _is_tensor(value: Any) -> bool:
  return isinstance(value, Tensor | np.ndarray) or (
    isinstance(value, Array) and isinstance(value.value, np.ndarray)
  )


def _array(value: Any) -> np.ndarray:
  if isinstance(value, Tensor):
    return value.array()
  return value.value if isinstance(value, Array) else value


def _unique(pairs: Iterator[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
  found: dict[str, np.ndarray] = {}
  for name, array in pairs:
    if name in found:
      raise ValueError(f"two tensors are named {shown(name)}")
    found[name] = array
  return found


def _name(key: Any) -> str:
  if not isinstance(key, str) or len(key) > 200 or not key.isprintable():
    raise ValueError(f"a tensor is named {shown(key)}")
  return key


def _module_tensors(
  module: Record, prefix: str, depth: int, left: list[int]
) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors of a torch module's __dict__, under the names that its state_dict gives them."""
  left[0] -= 1
  if depth > MAX_DEPTH or left[0] < 0:
    raise ValueError(
      f"its modules are nested more than {MAX_DEPTH} deep, or more than {MAX_MODULES}: a bomb"
    )
  for group in ("_parameters", "_buffers", "_modules"):
    members = module.state.get(group, {})
    if not isinstance(members, dict):
      raise ValueError(f"module {shown(prefix)} has {shown(members)} for {group}")
    for key, value in members.items():
      name = _name(f"{prefix}{key}")
      if group == "_modules" and isinstance(value, Record):
        yield from _module_tensors(value, f"{name}.", depth + 1, left)
      elif group != "_modules" and _is_tensor(value):
        yield name, _array(value)
      elif value is not None:
        raise ValueError(f"{shown(name)} is {shown(value)}, not a tensor or a module")


def _options(state: Mapping[Any, Any]) -> dict[str, Any]:
  """Plain values among a module's attributes, over those it was constructed with."""
  given = state.get("_init_kwargs")
  both = {**(given if isinstance(given, dict) else {}), **state}
  return {
    key: value
    for key, value in both.items()
    if isinstance(key, str) and not key.startswith("_") and _is_plain(value)
  }


def _is_plain(value: Any) -> bool:
  if isinstance(value, list | tuple):
    return len(value) <= 64 and all(isinstance(v, str | int | float) for v in value)
  return isinstance(value, str | int | float) or value is None


# --- flax -----------------------------------------------------------------------------------------


def _flax_networks(tree: Any) -> Iterator[tuple[str, Weights]]:
  """The parameters in a train state of flax: those of its entries that are dicts of arrays."""
  if not isinstance(tree, dict):
    raise ValueError(f"it holds {shown(tree)}, not a dict")
  for key, value in tree.items():
    if isinstance(value, dict) and "params" in str(key):
      found = dict(_flat(value))
      if len(found) >= MIN_TENSORS:
        yield str(key), Weights(found)
  found = dict(_flat({key: value for key, value in tree.items() if "params" not in str(key)}))
  if "params" not in " ".join(map(str, tree)) and len(found) >= MIN_TENSORS:
    yield "", Weights(found)


def _flat(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
  for key, value in tree.items():
    name = _name(f"{prefix}{key}")
    if isinstance(value, dict):
      yield from _flat(value, f"{name}/")
    elif isinstance(value, np.ndarray):
      yield name, value
