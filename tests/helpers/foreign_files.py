"""Writes the files that EDM, EDM2 and PyTorch write, without any of them, for tests to read.

`dump` is an assembler of pickles: beside plain values it knows globals, calls, objects with a state
and persistent ids, sound or not.
"""

import io
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
  np.dtype(np.float64): "DoubleStorage",
  np.dtype(np.float32): "FloatStorage",
  np.dtype(np.float16): "HalfStorage",
  np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
  np.dtype(np.int64): "LongStorage",
  np.dtype(np.int32): "IntStorage",
  np.dtype(np.uint8): "ByteStorage",
  np.dtype(np.bool_): "BoolStorage",
}


class Global(NamedTuple):
  module: str
  name: str


class Call(NamedTuple):
  """function(*args), by REDUCE; then BUILD with `state`."""

  function: Any
  args: Any
  state: Any = None


class New(NamedTuple):
  """cls.__new__(cls), by NEWOBJ; then its items, then BUILD with `state`."""

  cls: Any
  items: dict | None = None
  state: Any = None


class Filled(NamedTuple):
  """What a call made, then its items, then BUILD with `state`."""

  made: Any
  items: dict
  state: Any = None


class Pid(NamedTuple):
  """A persistent id."""

  value: Any


class Raw(NamedTuple):
  """Opcodes as they are."""

  code: bytes


def dump(value, protocol=4):
  """The pickle of `value`."""
  body = _code(value, protocol) + b"."
  frame = b"\x95" + struct.pack("<Q", len(body)) if protocol >= 4 else b""
  return b"\x80" + bytes([protocol]) + frame + body


def _code(value, protocol):
  code = lambda v: _code(v, protocol)
  many = lambda values: b"".join(map(code, values))
  match value:
    case None | True | False:
      return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    case Raw():
      return value.code
    case Global():
      if protocol >= 4:
        return many(value) + b"\x93"
      return b"c" + f"{value.module}\n{value.name}\n".encode()
    case Call():
      build = b"" if value.state is None else code(value.state) + b"b"
      return many((value.function, value.args)) + b"R" + build
    case New():
      build = b"" if value.state is None else code(value.state) + b"b"
      return code(value.cls) + b")\x81" + _items(value.items or {}, code) + build
    case Filled():
      build = b"" if value.state is None else code(value.state) + b"b"
      return code(value.made) + _items(value.items, code) + build
    case Pid():
      return code(value.value) + b"Q"
    case int() if -(2**31) <= value < 2**31:
      return b"J" + struct.pack("<i", value)
    case int():
      raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
      return b"\x8a" + bytes([len(raw)]) + raw
    case float():
      return b"G" + struct.pack(">d", value)
    case str():
      raw = value.encode("utf-8", "surrogatepass")
      return b"X" + struct.pack("<I", len(raw)) + raw
    case bytes() if protocol >= 3:
      return b"B" + struct.pack("<I", len(value)) + value
    case bytes():
      return code(Call(Global("_codecs", "encode"), (value.decode("latin1"), "latin1")))
    case dict():
      return b"}" + _items(value, code)
    case list():
      return b"](" + many(value) + b"e"
    case set():
      return code(Call(Global("__builtin__", "set"), (list(value),)))
    case tuple():
      return b"(" + many(value) + b"t"
  raise TypeError(type(value))


def _items(items, code):
  return b"(" + b"".join(code(k) + code(v) for k, v in items.items()) + b"u" if items else b""


# --- tensors --------------------------------------------------------------------------------------


def ordered(items=None, state=None):
  """An OrderedDict as pickles have it: made empty, then filled."""
  made = Call(Global("collections", "OrderedDict"), ())
  if not items and state is None:
    return made
  return Filled(made, items or {}, state)


def strides(shape):
  return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def tensor(storage, shape, offset=0, stride=None):
  """A tensor over a storage, as torch.Tensor.__reduce_ex__ writes it."""
  args = (storage, offset, tuple(shape), strides(shape) if stride is None else stride)
  return Call(Global("torch._utils", "_rebuild_tensor_v2"), (*args, False, ordered()))


def parameter(data):
  return Call(Global("torch._utils", "_rebuild_parameter"), (data, True, ordered()))


def storage_id(array, key, numel=None, kind=None):
  kind = kind or STORAGES[array.dtype]
  numel = array.size if numel is None else numel
  return Pid(("storage", Global("torch", kind), key, "cpu", numel))


def legacy(value, arrays, *, protocol=2, numel=None, little_endian=True):
  """torch.save(..., _use_new_zipfile_serialization=False): `arrays` by key, sorted."""
  system = {
    "protocol_version": PROTOCOL,
    "little_endian": little_endian,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
  }
  keys = sorted(arrays)
  parts = [dump(v, protocol) for v in (MAGIC, PROTOCOL, system, value, keys)]
  for key in keys:
    count = arrays[key].size if numel is None else numel
    parts += [struct.pack("<q", count), _bytes(arrays[key], little_endian)]
  return b"".join(parts)


def _bytes(array, little_endian=True):
  raw = np.ascontiguousarray(array)
  if not little_endian:
    raw = raw.reshape(-1, 1).view(np.uint8)[:, ::-1]
  return raw.tobytes()


def loaded(array, protocol=4, **kwargs):
  """A storage inside a plain pickle: a legacy stream in a call of _load_from_bytes."""
  stream = legacy(storage_id(array, "1234"), {"1234": array}, **kwargs)
  return Call(Global("torch.storage", "_load_from_bytes"), (stream,))


def state_dict(arrays):
  """An OrderedDict of tensors whose storages have persistent ids, as a state_dict is saved."""
  tensors = {
    name: tensor(storage_id(array, str(i)), array.shape)
    for i, (name, array) in enumerate(arrays.items())
  }
  return ordered(tensors, state={"_metadata": ordered({"": {"version": 1}})})


def torch_legacy(arrays, **kwargs):
  """A state_dict as torch before 1.6 saved it."""
  return legacy(state_dict(arrays), {str(i): a for i, a in enumerate(arrays.values())}, **kwargs)


def torch_zip(arrays, value=None, *, little_endian=True, protocol=2, root="archive", **changes):
  """A state_dict as torch saves it; `changes` replace or add files by their names ('/' is '__')."""
  value = state_dict(arrays) if value is None else value
  files = {"data.pkl": dump(value, protocol)}
  files["byteorder"] = b"little" if little_endian else b"big"
  files |= {f"data/{i}": _bytes(a, little_endian) for i, a in enumerate(arrays.values())}
  files |= {"version": b"3\n"} | {name.replace("__", "/"): c for name, c in changes.items()}
  return zip_of({f"{root}/{name}": raw for name, raw in files.items() if raw is not None})


def zip_of(files, compression=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", compression) as archive:
    for name, raw in files.items():
      archive.writestr(name, raw)
  return buffer.getvalue()


# --- modules in EDM's format ----------------------------------------------------------------------


def persistent(class_name, state, source):
  """An object of a persistent class: unpickled by its own code, it would run `source`."""
  meta = {
    "type": "class",
    "version": 6,
    "module_src": source,
    "class_name": class_name,
    "state": state,
  }
  easy = New(Global("dnnlib.util", "EasyDict"), meta)
  return Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (easy,))


def module_state(parameters, buffers, modules, attributes):
  """The __dict__ of a torch.nn.Module."""
  return {
    "training": False,
    "_parameters": ordered(parameters),
    "_buffers": ordered(buffers),
    "_non_persistent_buffers_set": set(),
    "_backward_hooks": ordered(),
    "_forward_hooks": ordered(),
    "_is_full_backward_hook": None,
    "_modules": ordered(modules),
    **attributes,
  }


def edm_pickle(arrays, class_name, kwargs, *, protocol=4, source="raise SystemExit", **others):
  """dict(ema=<module>, ...) of the tensors `arrays`, by their state_dict names."""
  attributes = {"_init_args": (), "_init_kwargs": kwargs, "sigma_data": 0.5, **others}
  ema = _module(arrays, class_name, attributes, source)
  loss = persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}, source)
  dataset = New(Global("dnnlib.util", "EasyDict"), {"class_name": "training.dataset", "path": "x"})
  found = {"ema": ema, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": dataset}
  return dump(found, protocol)


BUFFERS = ("resample_filter", "freqs", "phases")


def _module(arrays, class_name, attributes, source):
  own = {name: a for name, a in arrays.items() if "." not in name}
  made = {name: tensor(loaded(a), a.shape) for name, a in own.items()}
  parameters = {n: parameter(t) for n, t in made.items() if n not in BUFFERS}
  buffers = {n: t for n, t in made.items() if n in BUFFERS}
  children = {}
  for name, a in arrays.items():
    child, dot, rest = name.partition(".")
    if dot:
      children.setdefault(child, {})[rest] = a
  modules = {
    child: _module(inside, "Block", {"_init_args": (), "_init_kwargs": {}}, source)
    for child, inside in children.items()
  }
  parameters |= {} if parameters else {"bias": None}
  if set(own) or class_name != "Block":
    return persistent(class_name, module_state(parameters, buffers, modules, attributes), source)
  kind = Global("torch.nn.modules.container", "ModuleDict")
  return New(kind, state=module_state({}, {}, modules, {}))
