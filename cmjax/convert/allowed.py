"""What the names in a pickle stand for: the allow-list, and the inert things that it builds.

To let in one more name, give it a builder here: a function of this package, of plain data to plain
data. What is not listed is refused by name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from cmjax.base.printable import shown
from cmjax.convert import tensors
from cmjax.convert.tensors import DTYPES, Budget, Tensor


@dataclasses.dataclass(eq=False)
class Global:
  """A name in a file that stands for a class, a function or a constant; here only a name."""

  name: str


@dataclasses.dataclass(eq=False)
class Record:
  """An object in a file: the name of its class, and its attributes."""

  name: str
  state: dict[Any, Any]


@dataclasses.dataclass(eq=False)
class Array:
  """A NumPy array or dtype that BUILD has still to complete."""

  name: str
  value: Any = None


class Attributed(dict):
  """A mapping that may carry attributes as well, which are dropped."""


def _persistent_object(budget: Budget, meta: Any) -> Record:
  """EDM's persistent classes: {type, class_name, module_src, state}; the source is left alone."""
  kind = meta.get("type") if isinstance(meta, dict) else None
  if kind != "class" or not isinstance(meta.get("state"), dict):
    raise ValueError("a persistent object has no type 'class' and state")
  name = meta.get("class_name")
  if not isinstance(name, str):
    raise ValueError(f"a persistent object has the class_name {shown(name)}")
  return Record(name, meta["state"])


def _tensor(budget, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
  return tensors.tensor_of(storage, offset, size, stride)


def _parameter(budget, data, requires_grad=True, hooks=None, state=None):
  if not isinstance(data, Tensor):
    raise ValueError(f"a parameter's data is {shown(data)}, not a tensor")
  return data


def _ordered_dict(budget, items=()):
  if not isinstance(items, list | tuple):
    raise ValueError(f"an OrderedDict is made of {shown(items)}")
  budget.spend(steps=len(items))
  made = Attributed()
  for item in items:
    if not isinstance(item, list | tuple) or len(item) != 2:
      raise ValueError("an OrderedDict is made of something other than pairs")
    made[check_key(item[0])] = item[1]
  return made


def _set(budget, items=()):
  if not isinstance(items, list | tuple):
    raise ValueError(f"a set is made of {shown(items)}")
  budget.spend(steps=len(items))
  return {check_key(item) for item in items}


def _bytes(budget, data=b"", encoding="latin1"):
  """`bytes`, `bytearray` and `_codecs.encode`, as protocol 2 spells bytes."""
  if isinstance(data, str):
    budget.spend(num_bytes=len(data))
    if encoding != "latin1":
      raise ValueError(f"bytes are encoded as {shown(encoding)}, not latin1")
    return data.encode("latin1")
  if not isinstance(data, bytes):
    raise ValueError(f"bytes are made of {shown(data)}")
  return data


def _numpy_array(budget, *args):
  return Array("ndarray")


def _numpy_dtype(budget, code, align=False, copy=True):
  if not isinstance(code, str):
    raise ValueError(f"a dtype is named by {shown(code)}")
  return Array("dtype", tensors.number_dtype(code))


def _numpy_scalar(budget, dtype, raw=None):
  return tensors.from_bytes(raw, _dtype(dtype), ()).item()


def _numpy_buffer(budget, raw, dtype, shape, order="C"):
  return tensors.from_bytes(raw, _dtype(dtype), shape, fortran=order == "F")


def _dtype(value: Any) -> Any:
  if not isinstance(value, Array) or value.name != "dtype":
    raise ValueError(f"an array's dtype is {shown(value)}")
  return value.value


def _plain(budget, *args):
  """A constructor whose one argument says it all: torch.Size, torch.device."""
  return args[0] if len(args) == 1 else tuple(args)


def _new(name: str) -> Callable[..., Any]:
  return lambda budget, *args: Record(name, {})


def _reconstructor(budget, made, base=None, state=None):
  """`copyreg._reconstructor`, by which protocols 0 and 1 make objects."""
  if not isinstance(made, Global) or made.name not in CLASSES:
    raise ValueError(f"copyreg._reconstructor of {shown(getattr(made, 'name', made))}")
  return CLASSES[made.name](budget)


# Classes that NEWOBJ may make; torch's own layers occur inside EDM's.
_LAYERS = (
  "container.ModuleDict", "container.ModuleList", "container.Sequential", "linear.Linear",
  "linear.Identity", "conv.Conv2d", "normalization.GroupNorm", "activation.SiLU", "dropout.Dropout",
)  # fmt: skip
CLASSES: dict[str, Callable[..., Any]] = {
  "dnnlib.util.EasyDict": lambda budget, *args: Attributed(),
  "collections.OrderedDict": lambda budget, *args: Attributed(),
  **{name: _new(name) for name in (f"torch.nn.modules.{layer}" for layer in _LAYERS)},
}
# Functions and classes that REDUCE may call: these, in their stead.
BUILDERS: dict[str, Callable[..., Any]] = {
  **CLASSES,
  "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
  "collections.OrderedDict": _ordered_dict,
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_parameter": _parameter,
  "torch._utils._rebuild_parameter_with_state": _parameter,
  "torch.Size": _plain,
  "torch.device": _plain,
  "builtins.set": _set,
  "builtins.frozenset": _set,
  "builtins.bytes": _bytes,
  "builtins.bytearray": _bytes,
  "_codecs.encode": _bytes,
  "copyreg._reconstructor": _reconstructor,
  "numpy.dtype": _numpy_dtype,
  **{
    f"numpy.{core}.{name}": builder
    for core in ("core", "_core")
    for name, builder in (
      ("multiarray._reconstruct", _numpy_array),
      ("multiarray.scalar", _numpy_scalar),
      ("numeric._frombuffer", _numpy_buffer),
    )
  },
}
# Called by the machine itself, which knows how deep it is.
LOAD_STORAGE = "torch.storage._load_from_bytes"
# Names that are never called, or not by way of the table.
CONSTANTS = {
  LOAD_STORAGE,
  "builtins.object",
  "numpy.ndarray",
  *(f"torch.{name}Storage" for name in DTYPES),
  *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "uint8")),
}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as protocol 2 writes them


def check_key(value: Any) -> Any:
  """A key of a dict, or an element of a set: of nested tuples the hash alone can take hours."""
  flat = isinstance(value, str | int | bytes | Global) or value is None
  if not flat and not (isinstance(value, float) and value == value):
    parts = value if isinstance(value, tuple) and len(value) <= 16 else (value,)
    if not all(isinstance(part, str | int) for part in parts):
      raise ValueError(f"a key is {'nan' if isinstance(value, float) else shown(value)}")
  return value


def complete(made: Array, state: tuple[Any, ...]) -> None:
  """What NumPy's __setstate__ would do, of arrays and dtypes of numbers."""
  if made.name == "dtype":
    order, extra = (state[1], state[2:5]) if len(state) >= 5 else (None, ())
    if order not in ("<", ">", "|", "=") or any(part is not None for part in extra):
      raise ValueError("a dtype has fields, or no byte order")
    made.value = made.value.newbyteorder(order)
    return
  if len(state) != 5:
    raise ValueError("an array's state is not (version, shape, dtype, order, bytes)")
  _, shape, dtype, fortran, raw = state
  made.value = tensors.from_bytes(raw, _dtype(dtype), shape, fortran=fortran is True)


def function_name(function: Any) -> str:
  """The name of what a pickle calls, or the type of what is no name at all."""
  return function.name if isinstance(function, Global) else type(function).__name__
