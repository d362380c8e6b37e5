"""Where the processes of a run wait for each other: every wait has a name, words, and an end.

A collective of JAX waits in silence and for ever. So processes meet here first, by keys in JAX's
coordination service. A wait that lasts is told, with the processes that have not come and what they
wait at themselves: after a minute, then every five. Where every process waits, none is at work, and
after half an hour that is an error. While some are at work it is one after six hours. Of processes
that die nothing is said here: JAX notices it within about 100 seconds and ends the others.
"""

import contextlib
import json
import logging
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

# The service has no public name, and what is public of JAX has neither words nor an end.
from jax._src import distributed

logger = logging.getLogger("cmjax")

FIRST_WORD, NEXT_WORDS = 60.0, 300.0  # seconds of a wait: when it is told, and told again
LIMIT = 30 * 60.0  # seconds that all may wait, each at another place
LIMIT_AT_WORK = 6 * 3600.0  # seconds that one may wait for those that are at work
_POLL = 2.0  # seconds that Python's signals are not looked at
_NAMED = 8  # processes, or hosts, in a message
_KEPT = 256  # meetings that all have left; a process is never that far behind

_lock = threading.Lock()
_numbers: Counter[str] = Counter()
_left: deque[str] = deque()
_labels = threading.local()


class Service(NamedTuple):
  """JAX's coordination service as this process has it."""

  client: Any
  index: int
  count: int


def exchange(what: str, value: Any = None) -> list[Any]:
  """The values that all processes call this with, in their order, once all have come.

  Args:
    what: they meet for; the same on all of them. Meetings of one name are counted.
    value: plain data, for JSON.

  Raises:
    TimeoutError: some did not come in the time that is given.
    ConnectionError: the service cannot be reached any more.
  """
  service = _service()
  if service is None:
    return [value]
  with _lock:
    _numbers[what] += 1
    place = f"cmjax/meetings/{what.replace('/', '|')}/{_numbers[what]}"
  return _Meeting(service, what, place).values(value)


@contextlib.contextmanager
def during(label: str) -> Iterator[None]:
  """What this thread does meanwhile: said where a meeting in it is told of."""
  before = getattr(_labels, "label", "")
  _labels.label = label
  try:
    yield
  finally:
    _labels.label = before


def introduce() -> None:
  """Tells the others the name of this host; each process once, when it has joined them."""
  if service := _service():
    service.client.key_value_set(
      f"cmjax/hosts/{service.index}", platform.node(), allow_overwrite=True
    )


def _service() -> Service | None:
  """None for a process that is alone.

  Raises:
    RuntimeError: it is not, and has not joined the others.
  """
  index, count = jax.process_index(), jax.process_count()
  if count == 1:
    return None
  client = distributed.global_state.client
  if client is None:
    raise RuntimeError(
      f"This is one of {count} processes, but they have not met: call jax.distributed.initialize() "
      "first, before any use of a device."
    )
  return Service(client, index, count)


class _Meeting:
  """One exchange: process 0 gathers the values, and the others wait for what it gathered."""

  def __init__(self, service: Service, what: str, place: str):
    self._service, self._place = service, place
    label = getattr(_labels, "label", "")
    self._what = f"{label}: {what}" if label else what
    self._began, self._next_word = time.monotonic(), FIRST_WORD
    self._told_where: str | None = None

  def values(self, value: Any) -> list[Any]:
    client, index, _ = self._service
    came = f"{self._place}/came/{index}"
    try:
      client.key_value_set(came, json.dumps(value))
      values = self._gather() if index == 0 else json.loads(self._get(f"{self._place}/all"))
      client.key_value_delete(came)
    except jax.errors.JaxRuntimeError as error:
      raise ConnectionError(
        f"{self._me()} waits at {self._what!r}, and process 0, by which they meet, cannot be "
        f"reached any more: {str(error).splitlines()[0]}"
      ) from error
    if self._told_where:  # after an error it stays: this process is not at work
      client.key_value_delete(self._told_where)
      waited = time.monotonic() - self._began
      logger.info("%s: all have come to %r, after %.0f s.", self._me(), self._what, waited)
    return values

  def _gather(self) -> list[Any]:
    client, _, count = self._service
    values = [self._get(f"{self._place}/came/{i}") for i in range(count)]
    client.key_value_set(f"{self._place}/all", f"[{', '.join(values)}]")
    with _lock:
      _left.append(self._place)
      old = _left.popleft() if len(_left) > _KEPT else None
    if old:
      client.key_value_delete(f"{old}/")
    return [json.loads(text) for text in values]

  def _get(self, key: str) -> str:
    """The value of a key, once it has one."""
    while True:
      left = max(0.01, self._next_word - (time.monotonic() - self._began))
      try:
        return self._service.client.blocking_key_value_get(key, int(1000 * min(_POLL, left)) + 1)
      except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          raise
      if time.monotonic() - self._began >= self._next_word:
        self._tell()

  def _tell(self) -> None:
    """Says whom this process waits for; raises if that has lasted too long."""
    client, index, count = self._service
    self._told_where = f"cmjax/waits/{index}/{threading.get_ident()}"
    client.key_value_set(self._told_where, self._what, allow_overwrite=True)
    # Directories are given by what their keys begin with.
    came = {
      int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(f"{self._place}/came/")
    }
    waits: dict[int, list[str]] = {i: [] for i in range(count)}
    for key, where in client.key_value_dir_get("cmjax/waits/"):
      waits[int(key.split("/")[2])].append(where)
    missing, waited = sorted(set(range(count)) - came), time.monotonic() - self._began
    said = (
      f"{self._me()} waits at {self._what!r}, for {waited:.0f} s now, for {self._named(missing)}"
    )
    others = [f"process {i} waits at {'; '.join(map(repr, waits[i]))}" for i in missing if waits[i]]
    at_work = [i for i in range(count) if not waits[i]]
    if others:
      said += f"; {'; '.join(others)}"
    if waited >= (LIMIT_AT_WORK if at_work else LIMIT):
      raise TimeoutError(f"{said}. That is too long: it ends here. Start the run again.")
    logger.warning("%s.%s", said, " The others are at work, or do not answer." * (not others))
    limits = (LIMIT_AT_WORK if at_work else LIMIT) - waited
    self._next_word = waited + min(NEXT_WORDS, max(1.0, limits))

  def _me(self) -> str:
    return f"Process {self._service.index} on {platform.node()}"

  def _named(self, processes: list[int]) -> str:
    keys = self._service.client.key_value_dir_get("cmjax/hosts/")
    hosts = {int(key.rsplit("/", 1)[1]): host for key, host in keys}
    return named({i: hosts.get(i, "?") for i in processes})


def named(hosts: Mapping[int, str]) -> str:
  """Processes and their hosts in words; of many the first eight.

  >>> named({3: "a", 7: "b"})
  'processes 3, 7 (hosts a, b)'
  """
  shorter = lambda names: ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
  processes, places = list(map(str, hosts)), list(dict.fromkeys(hosts.values()))
  return (
    f"process{'es' * (len(processes) > 1)} {shorter(processes)} "
    f"(host{'s' * (len(places) > 1)} {shorter(places)})"
  )
