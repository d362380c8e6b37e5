"""Pickles read as data: a machine of its own that builds inert things and calls nothing foreign.

A pickle is a program, and Python's unpickler runs it: it imports what the file names, calls it, and
sets attributes where the file says. Here each opcode that can occur in a file of weights has a
method that checks its operands; a name from the file is looked up in `allowed.BUILDERS`, whose
functions are all of this package and return plain data. Every other opcode and every other name is
an error. Source text inside a file (EDM's `module_src`) is dropped unread.

Python's own `Unpickler` with a `find_class` would not do: it allocates what a length or an index
claims before it reads, hashes keys that take forever, and lets BUILD and APPEND loose on whatever
lies on its stack.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from cmjax.base.printable import shown
from cmjax.convert.allowed import (
  BUILDERS,
  CLASSES,
  CONSTANTS,
  LOAD_STORAGE,
  PYTHON_2,
  Array,
  Attributed,
  Global,
  Record,
  check_key,
  complete,
  function_name,
)
from cmjax.convert.tensors import DTYPES, Budget, Storage, is_count

# What torch.save without a zip begins with, and the protocol that follows.
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_STACK = 100_000

# A persistent id -> what it stands for.
Persistent = Callable[[Any], Any]


class _Machine:
  """Runs one pickle; `stream` has read, readline and tell, and is left just behind it."""

  def __init__(self, stream: Any, budget: Budget, persistent: Persistent | None, depth: int):
    self.stream, self.budget, self.persistent, self.depth = stream, budget, persistent, depth
    self.stack: list[Any] = []
    self.marks: list[list[Any]] = []
    self.memo: dict[int, Any] = {}

  def run(self) -> Any:
    position = 0
    try:
      for opcode, arg, at in pickletools.genops(self.stream):
        method, position = _OPCODES.get(opcode.name), at
        if method is None:
          raise ValueError(f"the opcode {opcode.name} has no place in a file of weights")
        self.budget.spend(steps=1, num_bytes=len(arg) if isinstance(arg, bytes | str) else 0)
        method(self, arg)
        if len(self.stack) + len(self.marks) > MAX_STACK:
          raise ValueError(f"more than {MAX_STACK} objects are open at once: it is nested too deep")
      return self.pop()
    except ValueError as error:
      raise ValueError(f"{_one_line(error)} (at byte {position} of the pickle)") from None

  def pop(self) -> Any:
    if not self.stack:
      raise ValueError("it takes an object from an empty stack")
    return self.stack.pop()

  def top(self) -> Any:
    if not self.stack:
      raise ValueError("it looks for an object on an empty stack")
    return self.stack[-1]

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def drop(self, value: Any) -> None:
    """Nothing: what was popped is forgotten."""

  def since_mark(self) -> list[Any]:
    if not self.marks:
      raise ValueError("it goes back to a mark that is not there")
    items, self.stack = self.stack, self.marks.pop()
    return items

  def mark(self, arg: Any) -> None:
    self.marks.append(self.stack)
    self.stack = []

  def protocol(self, arg: Any) -> None:
    if arg > 5:
      raise ValueError(f"it says pickle protocol {arg}; there are 0 to 5")

  def take_tuple(self, n: int) -> tuple[Any, ...]:
    items = [self.pop() for _ in range(n)]
    return tuple(reversed(items))

  def number(self, arg: Any) -> None:
    if abs(arg) >= 2**128:
      raise ValueError("it has a whole number of more than 128 bits")
    self.push(arg)

  def memoize(self, index: int | None) -> None:
    index = len(self.memo) if index is None else index
    if index >= self.budget.max_steps:
      raise ValueError(f"it remembers an object under number {index}: more than there can be")
    self.memo[index] = self.top()

  def recall(self, index: int) -> None:
    if index not in self.memo:
      raise ValueError(f"it recalls object {index}, which it has not remembered")
    self.push(self.memo[index])

  def append(self, items: list[Any]) -> None:
    if type(self.top()) is not list:
      raise ValueError(f"it appends to {shown(self.top())}, not to a list")
    self.top().extend(items)

  def set_items(self, items: list[Any]) -> None:
    if not isinstance(self.top(), dict):
      raise ValueError(f"it sets items of {shown(self.top())}, not of a dict")
    if len(items) % 2:
      raise ValueError("it sets a key without a value")
    made = self.top()
    for key, value in zip(items[::2], items[1::2], strict=True):
      if check_key(key) in made:
        raise ValueError(f"it has the key {shown(key)} twice")
      made[key] = value

  def push_dict(self, items: list[Any]) -> None:
    self.push({})
    self.set_items(items)

  def add_items(self, items: list[Any]) -> None:
    if type(self.top()) is not set:
      raise ValueError(f"it adds to {shown(self.top())}, not to a set")
    self.top().update(map(check_key, items))

  def find(self, module: Any, name: Any) -> None:
    full = f"{PYTHON_2.get(module, module)}.{name}" if isinstance(module, str) else None
    if full not in BUILDERS and full not in CONSTANTS:
      said = shown(f"{module}.{name}") if isinstance(name, str) else shown(name)
      raise ValueError(
        f"it names {said}, which is no part of a file of weights; nothing of it was executed"
      )
    self.push(Global(str(full)))

  def find_from_stack(self) -> None:
    module, name = self.take_tuple(2)
    self.find(module, name)

  def reduce(self) -> None:
    function, args = self.take_tuple(2)
    builder = BUILDERS.get(function.name) if isinstance(function, Global) else None
    if function_name(function) == LOAD_STORAGE:
      builder = self.load_storage
    if builder is None:
      raise ValueError(f"it calls {shown(function_name(function))}")
    self.push(self.call(function, builder, args))

  def new_object(self, keywords: Any = None) -> None:
    made, args = self.take_tuple(2)
    builder = CLASSES.get(made.name) if isinstance(made, Global) else None
    if builder is None or keywords:
      raise ValueError(f"it makes an object of {shown(function_name(made))}")
    self.push(self.call(made, builder, args))

  def call(self, function: Global, builder: Callable[..., Any], args: Any) -> Any:
    if type(args) is not tuple:
      raise ValueError(f"it calls {function.name} with {shown(args)} for arguments")
    try:
      return builder(self.budget, *args)
    except (TypeError, UnicodeError) as error:
      raise ValueError(f"it calls {function.name} wrongly: {_one_line(error)}") from None

  def load_storage(self, budget: Budget, data: Any) -> Storage:
    """`torch.storage._load_from_bytes`: a legacy torch stream inside the pickle."""
    if not isinstance(data, bytes):
      raise ValueError(f"a storage is loaded from {shown(data)}, not from bytes")
    if self.depth:
      raise ValueError("a torch stream has another one inside")
    budget.spend(steps=20)
    storage = read_legacy(data, budget, depth=self.depth + 1)
    if not isinstance(storage, Storage):
      raise ValueError(f"a torch stream inside the pickle holds {shown(storage)}, not a storage")
    return storage

  def build(self) -> None:
    state, made = self.pop(), self.top()
    if isinstance(made, Record) and isinstance(state, dict):
      self.budget.spend(steps=len(state))
      made.state = {**made.state, **state}
    elif isinstance(made, Attributed) and isinstance(state, dict):
      pass  # such as the versions that torch keeps beside a state_dict
    elif isinstance(made, Array) and type(state) is tuple:
      self.budget.spend(steps=len(state))
      complete(made, state)
    else:
      raise ValueError(f"it sets attributes of {shown(made)} to {shown(state)}")

  def persistent_id(self) -> None:
    if self.persistent is None:
      raise ValueError("it has a persistent id, but there is nothing outside for it to name")
    self.push(self.persistent(self.pop()))

  def frame(self, size: int) -> None:
    if size > self.budget.file_size:
      raise ValueError(f"a frame is {size} bytes long, the file {self.budget.file_size}")


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
  "PROTO": _Machine.protocol,
  "FRAME": _Machine.frame,
  "STOP": lambda m, arg: None,
  "MARK": _Machine.mark,
  "POP": lambda m, arg: m.drop(m.pop()),
  "POP_MARK": lambda m, arg: m.drop(m.since_mark()),
  "DUP": lambda m, arg: m.push(m.top()),
  "NONE": lambda m, arg: m.push(None),
  "NEWTRUE": lambda m, arg: m.push(True),
  "NEWFALSE": lambda m, arg: m.push(False),
  **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _Machine.number),
  **dict.fromkeys(
    (
      "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
      "BINBYTES8",
    ),
    lambda m, arg: m.push(arg),
  ),
  "BYTEARRAY8": lambda m, arg: m.push(bytes(arg)),
  "EMPTY_TUPLE": lambda m, arg: m.push(()),
  "TUPLE": lambda m, arg: m.push(tuple(m.since_mark())),
  "TUPLE1": lambda m, arg: m.push(m.take_tuple(1)),
  "TUPLE2": lambda m, arg: m.push(m.take_tuple(2)),
  "TUPLE3": lambda m, arg: m.push(m.take_tuple(3)),
  "EMPTY_LIST": lambda m, arg: m.push([]),
  "LIST": lambda m, arg: m.push(m.since_mark()),
  "APPEND": lambda m, arg: m.append([m.pop()]),
  "APPENDS": lambda m, arg: m.append(m.since_mark()),
  "EMPTY_DICT": lambda m, arg: m.push({}),
  "DICT": lambda m, arg: m.push_dict(m.since_mark()),
  "SETITEM": lambda m, arg: m.set_items(list(m.take_tuple(2))),
  "SETITEMS": lambda m, arg: m.set_items(m.since_mark()),
  "EMPTY_SET": lambda m, arg: m.push(set()),
  "ADDITEMS": lambda m, arg: m.add_items(m.since_mark()),
  "FROZENSET": lambda m, arg: m.push(frozenset(map(check_key, m.since_mark()))),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize),
  "GLOBAL": lambda m, arg: m.find(*arg.split(" ", 1)),
  "STACK_GLOBAL": lambda m, arg: m.find_from_stack(),
  "REDUCE": lambda m, arg: m.reduce(),
  "NEWOBJ": lambda m, arg: m.new_object(),
  "NEWOBJ_EX": lambda m, arg: m.new_object(m.pop()),
  "BUILD": lambda m, arg: m.build(),
  "BINPERSID": lambda m, arg: m.persistent_id(),
}  # fmt: skip


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())[:300]


def read(stream: Any, budget: Budget, *, persistent: Persistent | None = None) -> Any:
  """What one pickle describes: plain containers, numbers, and the inert types of this module.

  Args:
    stream: has read, readline and tell, and stands at the pickle: an `io.BytesIO`, an `mmap`.
    budget: of the file.
    persistent: a persistent id -> the object it stands for, where the file has such.

  Raises:
    ValueError: in one line, for whatever is not a sound pickle of weights; nothing is executed.
  """
  return _Machine(stream, budget, persistent, 0).run()


def read_legacy(data: Any, budget: Budget, *, depth: int = 0) -> Any:
  """What a stream of torch.save without a zip holds; its storages are views of `data`.

  That is five pickles (magic number, protocol, system, object, keys of the storages), and then of
  each storage its number of elements, 8 bytes, and its elements.

  Args:
    data: all of it, `bytes` or an `mmap`.
    budget: of the file.
    depth: 1 where this stream lies inside a pickle.

  Raises:
    ValueError: as `read`.
  """
  stream = io.BytesIO(data) if isinstance(data, bytes) else data
  stream.seek(0)
  storages: dict[str, Storage] = {}
  part = lambda persistent=None: _Machine(stream, budget, persistent, depth).run()
  for expected, what in ((LEGACY_MAGIC, "magic number"), (LEGACY_PROTOCOL, "protocol")):
    if (got := part()) is None or type(got) is not int or got != expected:
      raise ValueError(f"a torch stream has the {what} {shown(got)}, not {expected}")
  system = part()
  swapped = isinstance(system, dict) and system.get("little_endian") is False
  found = part(lambda pid: storage_of(pid, storages, swapped=swapped))
  keys = part()
  if type(keys) is not list or not all(isinstance(key, str) for key in keys):
    raise ValueError(f"a torch stream lists its storages as {shown(keys)}")
  position = stream.tell()
  for key in keys:
    if key not in storages:
      raise ValueError(f"a torch stream has a storage {shown(key)} that no tensor uses")
    storage = storages[key]
    numel = int.from_bytes(data[position : position + 8], "little")
    size = numel * storage.dtype.itemsize
    position += 8
    if numel != storage.numel or position + size > len(data):
      raise ValueError(
        f"storage {shown(key)} is said to have {storage.numel} numbers; its own length says "
        f"{numel}, and {max(0, len(data) - position)} bytes are left"
      )
    raw = np.frombuffer(data, np.uint8, size, position)
    storage.read = lambda raw=raw: raw
    position += size
  return found


def storage_of(pid: Any, storages: dict[str, Storage], *, swapped: bool) -> Storage:
  """The storage of torch's persistent id (storage, type, key, device, numel), made at first sight.

  Args:
    pid: the persistent id.
    storages: those met so far, by key.
    swapped: whether their bytes are big-endian.

  Raises:
    ValueError: for any other id, an unknown type of storage, or one that is described twice and
      differently.
  """
  if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0:1] != ("storage",):
    raise ValueError(f"it has the persistent id {shown(pid)}, which is not one of a storage")
  kind, key, numel, view = pid[1], pid[2], pid[4], pid[5:6]
  name = function_name(kind)
  dtype = DTYPES.get(name.removeprefix("torch.").removesuffix("Storage"))
  if dtype is None or not isinstance(kind, Global) or not name.endswith("Storage"):
    raise ValueError(f"it has a storage of the unknown type {shown(name)}")
  if not isinstance(key, str) or not is_count(numel) or view not in ((), (None,)):
    raise ValueError(f"it has a storage {shown(key)} of {shown(numel)} numbers")
  known = storages.setdefault(key, Storage(np.dtype(dtype), numel, swapped=swapped))
  if (known.dtype, known.numel) != (dtype, numel):
    raise ValueError(f"storage {shown(key)} is described twice, and differently")
  return known
