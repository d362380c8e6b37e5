"""A run as others look at it: its state, its newest numbers, its scores and their cards.

All is read from the files of its workdir; nothing is built, and no checkpoint is opened.
"""

import functools
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from cmjax.base import json_files, lock, paths
from cmjax.metrics import cards, compare
from cmjax.program import stored_runs
from cmjax.run import page, sentences
from cmjax.run.charts import Series
from cmjax.run.history import records

logger = logging.getLogger("cmjax")
RUNNING, FINISHED, INTERRUPTED = "running", "finished", "interrupted"
CONVERTED, BEGUN = "converted", "no step yet"


class Score(NamedTuple):
  """A score of a run.

  Attributes:
    name: of the evaluator; of a value beside its main one, "fd/recall".
    sampler: the key of what drew the samples.
    average: the key of the weights.
    value: the score.
    step: of the weights; None: not known.
    floor: the score of held-out images.
    nfe: evaluations of the network for a sample.
    card: how it was made; None where it has no card.
  """

  name: str
  sampler: str
  average: str
  value: float
  step: int | None
  floor: float | None = None
  nfe: int | None = None
  card: Mapping[str, Any] | None = None

  @property
  def metric(self) -> str:
    """Its name in the history."""
    label, _, value = self.name.partition("/")
    return "/".join((label, self.sampler, self.average, *([value] if value else [])))


class Summary(NamedTuple):
  """A run.

  Attributes:
    path: its workdir.
    record: its config.
    state: running, finished, interrupted, converted or without a step.
    step: of its newest record.
    total_steps: of its config.
    history: {name: series} of its records.
    scores: the newest of each kind.
    problems: what of it could not be read.
    ended: Unix seconds of its newest record.
  """

  path: epath.Path
  record: Mapping[str, Any]
  state: str
  step: int
  total_steps: int | None
  history: Mapping[str, Series]
  scores: tuple[Score, ...]
  problems: tuple[str, ...] = ()
  ended: float = 0.0

  @property
  def method(self) -> str:
    """The name of its loss."""
    return str(section(self.record, "loss").get("name", ""))

  @property
  def data(self) -> str:
    """The name of its data."""
    return str(section(self.record, "data").get("name", ""))

  def newest(self, name: str) -> float | None:
    """The newest value of a metric."""
    return float(self.history[name][1][-1]) if name in self.history else None


def read(workdir: str | os.PathLike[str]) -> Summary:
  """The summary of a run.

  Raises:
    ValueError, OSError: its config cannot be read, so that nothing is known of it.
  """
  workdir = paths.place(workdir, "workdir")
  record, problems = stored_runs.read_record(workdir), []
  try:
    lines = records(workdir)
  except (ValueError, OSError) as error:
    lines = []
    problems.append(str(error))
  history = page.to_series(lines)
  step = max((int(line["step"]) for line in lines), default=0)
  ended = max((float(line["time"]) for line in lines), default=0.0)
  total = record.get("total_steps")
  total = total if isinstance(total, int) else None
  stored = _stored_scores(workdir, problems)
  state = _state(workdir, step, total, stored is not None)
  values: dict[str, tuple[int | None, float]] = {**newest(history)}
  # The file has no step. It is of the newest weights where the run is over, or has no history.
  if stored and (state in (FINISHED, CONVERTED) or not any(map(_parts, values))):
    values |= {name: (total, value) for name, value in stored.items()}
  scores, more = scores_of(workdir, record, values)
  problems = (*problems, *more)
  return Summary(workdir, record, state, step, total, history, scores, problems, ended)


def newest(history: Mapping[str, Series]) -> dict[str, tuple[int, float]]:
  """{name: (step, value)} of the newest values of a history."""
  return {name: (int(steps[-1]), float(values[-1])) for name, (steps, values) in history.items()}


def section(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """A section of a config; {} where it is none."""
  found = record.get(key)
  return found if isinstance(found, Mapping) else {}


def kind(method: str) -> str:
  """Which words fit a method, `sentences.CONSISTENCY` or `DIFFUSION`; "" of one of your own."""
  if method == "diffusion":
    return sentences.DIFFUSION
  return sentences.CONSISTENCY if re.fullmatch(r"s?c[td](_continuous)?", method) else ""


def _state(workdir: epath.Path, step: int, total: int | None, has_scores: bool) -> str:
  if lock.is_held(workdir):
    return RUNNING
  if total == 0:
    return CONVERTED
  if step and step == total and has_scores:  # which are written last
    return FINISHED
  return INTERRUPTED if step or (workdir / "checkpoints").is_dir() else BEGUN


def _stored_scores(workdir: epath.Path, problems: list[str]) -> dict[str, float] | None:
  """What scores.json says; None where there is none, or it is damaged."""
  path = workdir / "scores.json"
  if not path.is_file():
    return None
  try:
    found = json_files.read(path)
    if not isinstance(found, dict):
      raise ValueError("it is no table")
    return {str(name): float(value) for name, value in found.items()}
  except (ValueError, TypeError, OSError) as error:
    problems.append(f"{path} cannot be read: {error}")
    return None


def _parts(name: str) -> tuple[str, str, str, str] | None:
  """Evaluator, sampler, average and value of the name of a score; None of what is none."""
  match = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)(?:/([^/]+))?", name)
  return None if match is None else (match[1], match[2], match[3], match[4] or "")


def scores_of(
  workdir: epath.Path,
  record: Mapping[str, Any],
  newest: Mapping[str, tuple[int | None, float]],
) -> tuple[tuple[Score, ...], list[str]]:
  """The scores among the values of a run, with their cards; and what could not be read.

  Args:
    workdir: of the run.
    record: its config.
    newest: {name: (step, value)}.
  """
  evals, samplers = section(record, "evals"), section(record, "samplers")
  problems, found = [], []
  read_card = functools.cache(lambda name: _card(workdir, name, problems))
  for name, (step, value) in newest.items():
    label, sampler, average, what = _parts(name) or ("", "", "", "")
    if label not in evals or sampler not in samplers:
      continue
    label = f"{label}/{what}" if what else label
    floor = newest.get(f"{name.partition('/')[0]}/floor{f'/{what}' if what else ''}")
    stem = f"{name.partition('/')[0]}_{sampler}_{average}_step{step}"
    card = read_card(stem)
    found.append(
      Score(
        *(label, sampler, average, value, step, floor and floor[1]),
        nfe=_nfe(samplers[sampler], card),
        card=card,
      )
    )
  return tuple(found), problems


def _card(workdir: epath.Path, name: str, problems: list[str]) -> dict[str, Any] | None:
  path = cards.path_of(workdir / cards.FOLDER, name)
  if not path.is_file():
    return None
  try:
    return cards.read(path)
  except ValueError as error:
    problems.append(str(error))
    return None


def _nfe(sampler: Any, card: Mapping[str, Any] | None) -> int | None:
  known = card and section(card, "sampler").get("nfe")
  if isinstance(known, int):
    return known
  if isinstance(sampler, Mapping) and sampler.get("name") == "consistency":
    return 1 + len(sampler.get("mid_times") or ())
  return None


def why_incomparable(a: Summary, b: Summary, one: Score, other: Score) -> list[str]:
  """What keeps two scores of two runs from being compared: by their cards, else by the configs."""
  if one.card and other.card:
    return compare.incomparable(one.card, other.card)
  if bool(one.card) != bool(other.card):
    return ["only one of them has a card"]
  found = []
  label = one.name.partition("/")[0]
  for what, key in ((f"evals.{label}", label), ("data", "")):
    sections = [
      section(run.record, "evals").get(key) if key else section(run.record, "data")
      for run in (a, b)
    ]
    if _judged(sections[0]) != _judged(sections[1]):
      found.append(f"the configs differ in {what}")
  return found


_FREE = ("samplers", "emas", "every_steps", "at_start", "batch_size", "threads", "prefetch", "flip")


def _judged(given: Any) -> Any:
  """Of a section what a score depends on."""
  if not isinstance(given, Mapping):
    return given
  return {key: value for key, value in given.items() if key not in _FREE}
