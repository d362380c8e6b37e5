"""Tensors as a foreign file describes them: every claim is checked against the bytes there."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from cmjax.base import limits
from cmjax.base.printable import shown

# Of numbers only: a dtype with objects or fields has no place in a file of weights.
DTYPES = {
  "Double": np.float64,
  "Float": np.float32,
  "Half": np.float16,
  "BFloat16": ml_dtypes.bfloat16,
  "Long": np.int64,
  "Int": np.int32,
  "Short": np.int16,
  "Char": np.int8,
  "Byte": np.uint8,
  "Bool": np.bool_,
}
MAX_DIMS, MAX_SIZE = 16, 2**40


class Budget:
  """What reading one file may cost: steps, and bytes in proportion to those of the file.

  A file of a few kilobytes can describe petabytes, or hours, by naming one thing many times. A
  network of 450 modules and 850 tensors takes 150,000 steps (measured; EDM's and EDM2's have half
  of that), and copies the bytes of its file once.

  Args:
    file_size: in bytes.
    max_steps: of the reader of pickles; a step is an opcode, or an element that is copied. None:
      the limit.
  """

  def __init__(self, file_size: int, *, max_steps: int | None = None):
    self.file_size, self.max_steps = file_size, max_steps or limits.get("pickle_steps")
    self.steps, self.bytes = self.max_steps, 4 * file_size + 2**20

  def spend(self, *, steps: int = 0, num_bytes: int = 0) -> None:
    """Raises ValueError once the file has cost more than it may."""
    self.steps -= steps
    self.bytes -= num_bytes
    if self.steps < 0:
      raise ValueError(
        f"it needs more than {self.max_steps} steps to read, several times what a network does; "
        "the limit is pickle_steps: --limits=pickle_steps=NUMBER raises it"
      )
    if self.bytes < 0:
      raise ValueError(
        f"it expands to more than 4 times its {self.file_size} bytes: a bomb, not a network"
      )


@dataclasses.dataclass(eq=False)
class Storage:
  """The flat memory of tensors; `read` gives its bytes once they are known.

  Args:
    dtype: of its elements.
    numel: how many the file says there are.
    read: the bytes, as a flat array of uint8.
    swapped: whether they are big-endian.
  """

  dtype: np.dtype
  numel: int
  read: Callable[[], np.ndarray] | None = None
  swapped: bool = False
  _array: np.ndarray | None = None

  def array(self) -> np.ndarray:
    """All elements, [numel]; a view of the file where it can be."""
    if self._array is None:
      if self.read is None:
        raise ValueError("a tensor's storage is missing in the file")
      raw, size = self.read(), self.dtype.itemsize
      if len(raw) != self.numel * size:
        raise ValueError(
          f"a storage is said to have {self.numel} numbers of {size} bytes, but is {len(raw)} long"
        )
      if self.swapped and size > 1:
        raw = np.ascontiguousarray(raw.reshape(-1, size)[:, ::-1]).reshape(-1)
      self._array = raw.view(self.dtype)
    return self._array


@dataclasses.dataclass(eq=False)
class Tensor:
  """A view of a storage: element (i, j, ...) is number offset + i stride_0 + j stride_1 + ..."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]

  def array(self) -> np.ndarray:
    """The tensor as a read-only array, not copied."""
    flat, size = self.storage.array(), self.storage.dtype.itemsize
    if not math.prod(self.shape):
      return np.zeros(self.shape, self.storage.dtype)
    strides = tuple(s * size for s in self.stride)
    view = np.lib.stride_tricks.as_strided
    return view(flat[self.offset :], self.shape, strides, writeable=False)


def tensor_of(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
  """A tensor as a file describes it.

  Raises:
    ValueError: for what is no such description, or reaches beyond its storage.
  """
  if not isinstance(storage, Storage):
    raise ValueError(f"a tensor's storage is {shown(storage)}")
  check_shape(shape)
  counts = type(stride) is tuple and all(map(is_count, (offset, *stride)))
  if not counts or len(stride) != len(shape):
    raise ValueError(
      f"a tensor of shape {shown(shape)} has offset {shown(offset)}, strides {shown(stride)}: "
      "they must be one number >= 0 per axis"
    )
  numel, there = math.prod(shape), storage.numel
  last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
  # An axis of stride 0 is a value that is repeated: no weight is stored so, but a bomb could be.
  if numel and (last >= there or numel > there):
    raise ValueError(
      f"a tensor of shape {shown(shape)}, offset {offset}, strides {shown(stride)} needs "
      f"{max(last + 1, numel)} numbers, its storage has {there}"
    )
  return Tensor(storage, offset, shape, stride)


def is_count(n: Any) -> bool:
  """Whether n is a whole number that can count something in a file."""
  return type(n) is int and 0 <= n <= MAX_SIZE


def check_shape(shape: Any) -> None:
  """Raises ValueError for what is no shape, or one that no file could hold."""
  if type(shape) is not tuple or len(shape) > MAX_DIMS or any(not is_count(n) for n in shape):
    raise ValueError(f"a tensor's shape is {shown(shape)}: it must be up to {MAX_DIMS} sizes >= 0")
  if math.prod(n for n in shape if n) > MAX_SIZE:
    raise ValueError(f"a tensor's shape is {shown(shape)}, more than {MAX_SIZE} numbers")


def from_bytes(
  raw: Any, dtype: Any, shape: tuple[int, ...], *, fortran: bool = False
) -> np.ndarray:
  """A read-only array of these bytes; not copied.

  Raises:
    ValueError: for a dtype that is not one of numbers, or a shape that needs another number of
      bytes.
  """
  dtype = number_dtype(dtype)
  check_shape(shape)
  if not isinstance(raw, bytes | bytearray | memoryview):
    raise ValueError(f"an array's values are {type(raw).__name__}, not bytes")
  needed = math.prod(shape) * dtype.itemsize
  if len(raw) != needed:
    raise ValueError(f"an array {dtype}{list(shape)} needs {needed} bytes, but has {len(raw)}")
  array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
  array.flags.writeable = False
  return array


def number_dtype(dtype: Any) -> np.dtype:
  """A dtype of real numbers or booleans, by its NumPy name or code.

  Raises:
    ValueError: for any other: one of objects, records, strings, dates.
  """
  if isinstance(dtype, str) and dtype == "bfloat16":
    return np.dtype(ml_dtypes.bfloat16)
  if isinstance(dtype, str) and len(dtype) < 16 and "," not in dtype:
    try:
      dtype = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
      pass
  known = isinstance(dtype, np.dtype)
  if not known or not (dtype.kind in "fiub" or dtype == ml_dtypes.bfloat16):
    raise ValueError(f"the dtype {shown(dtype)} is not one of plain numbers")
  return dtype


def as_float32(name: str, array: np.ndarray) -> np.ndarray:
  """Floating-point weights as float32: float16 and bfloat16 exactly, float64 rounded.

  Raises:
    ValueError: for other types, and for values that are not finite.
  """
  if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
    raise ValueError(f"{name} is {array.dtype}{list(array.shape)}: weights are floating-point.")
  with np.errstate(over="ignore"):  # found just below
    array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    count = int(array.size - np.isfinite(array).sum())
    raise ValueError(f"{name} has {count} values that are not finite in float32, of {array.size}.")
  return array
