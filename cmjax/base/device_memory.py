"""Where the memory of a device is not enough: the error for people, and XLA's words, read."""

import re


class OutOfMemory(MemoryError):
  """The devices have not the memory that was asked for; one message for people."""


_NUMBER = r"([\d.]+) ?([KMGT]?)i?(?:B\b|bytes)?"
# What a device was asked for, and what it has or has left, in the words of each platform.
_ASKED = tuple(
  re.compile(pattern.replace("#", _NUMBER))
  for pattern in (
    r"Used # of # hbm",  # a TPU's compiler: the whole program
    r"Attempting to (?:allocate|reserve) #.*?There are # free",  # a TPU that runs
    r"Failed to allocate request for #",  # GPUs
    r"[Oo]ut of memory (?:while trying to allocate|allocating) #",  # GPUs, CPUs
    r"ran out of memory trying to allocate #",
  )
)
# What is exhausted too, and is not the memory that arrays are in: a kernel's, a message's length.
_ANOTHER = re.compile(r"memory space (?!hbm)|larger than max")


def is_lack(message: str) -> bool:
  """Whether an error of XLA's says that the memory for arrays is not enough."""
  return "RESOURCE_EXHAUSTED" in message and not _ANOTHER.search(message)


def asked(message: str) -> list[float]:
  """The bytes that XLA's message has: asked for and, where it says so, what is there; else none."""
  for pattern in _ASKED:
    if match := pattern.search(message):
      parts = match.groups()
      return [_bytes(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
  return []


def _bytes(number: str, unit: str) -> float:
  return float(number.rstrip(".")) * 1024 ** ("KMGT".index(unit) + 1 if unit else 0)
