"""How long the devices had nothing to do because a batch was not there yet."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

T = TypeVar("T")

WORTH = 1e-3  # seconds: a wait that is worth the thread that times it


class DataWait:
  """Times what the devices wait for batches, and not what the host does while they are busy.

  A batch is fetched while the devices are at the steps before. Where they come to an end during
  the fetch, the wait begins with that: a thread sees when. It is started once a fetch was long, so
  that a run that never waits for data pays nothing.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._pool: ThreadPoolExecutor | None = None
    self._running: jax.Array | None = None
    self._sum, self._count = 0.0, 0  # since `mean` was asked

  def dispatched(self, results: Any) -> None:
    """The devices have been given steps, which end with these results."""
    leaves = jax.tree.leaves(results)
    self._running = leaves[0] if leaves else None

  def fetch(self, get: Callable[[], T]) -> tuple[T, float]:
    """What `get` gives, and the seconds in it that the devices had nothing to do."""
    began, running = self._clock(), self._running
    value, idle = self._timed(get, began, running)
    self._sum, self._count = self._sum + idle, self._count + 1
    return value, idle

  def mean(self) -> float:
    """The mean idle seconds of the fetches since it was last asked."""
    found = self._sum / max(1, self._count)
    self._sum, self._count = 0.0, 0
    return found

  def _timed(self, get: Callable[[], T], began: float, running: Any) -> tuple[T, float]:
    idle = running is None or running.is_ready()
    ended: Future[float] | None = None
    if not idle and self._pool is not None:
      ended = self._pool.submit(self._end_of, running)
    value = get()
    took = self._clock() - began
    if took > WORTH and self._pool is None:
      self._pool = ThreadPoolExecutor(1, "cmjax data wait")
    if idle:
      return value, took
    if ended is None or not ended.done():
      return value, 0.0
    return value, max(0.0, began + took - ended.result())

  def close(self) -> None:
    """Lets the thread go."""
    if self._pool is not None:
      self._pool.shutdown(wait=False)

  def _end_of(self, running: Any) -> float:
    running.block_until_ready()
    return self._clock()
