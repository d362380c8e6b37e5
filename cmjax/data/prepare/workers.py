"""Processes that share a piece of work, and end when their parent does."""

import collections
import contextlib
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from cmjax.base import limits


@contextlib.contextmanager
def workers(work: Any, num_workers: int | None) -> Iterator[Callable[..., Iterator[Any]]]:
  """Yields submit(function, items): function(work, item) of each, in order, by processes.

  A few items are under way at any time. Processes whose parent was killed end by themselves.
  """
  count = multiprocessing.cpu_count() if num_workers is None else num_workers
  if not count:
    yield lambda function, items: (function(work, item) for item in items)
    return
  context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads
  pool = futures.ProcessPoolExecutor(count, context, _begin, (work, limits.raised()))
  try:
    yield functools.partial(_in_turn, pool, 2 * count)
  except BrokenProcessPool as error:
    raise ValueError(
      "A process ended without a word, as it does when the memory is full. What is prepared is "
      "kept: start the same command again, with fewer --workers."
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _in_turn(
  pool: futures.Executor, ahead: int, function: Callable[[Any, Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
  """The results in order, with at most `ahead` items beyond the one that is waited for."""
  waiting: collections.deque[futures.Future] = collections.deque()
  for item in items:
    waiting.append(pool.submit(_call, function, item))
    if len(waiting) > ahead:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


_work: Any | None = None  # of this process, where it is one of `workers`


def _begin(work: Any, raised: dict[str, int]) -> None:
  global _work
  _work = work
  limits.allow(raised)
  parent = multiprocessing.parent_process()
  assert parent is not None, "this runs in processes of `workers`"

  def end_with_parent():
    parent.join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
  assert _work is not None, "_begin comes first"
  return function(_work, item)
