"""The page of a run: its scores beside its teacher's, and what each number is."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from cmjax.base import paths
from cmjax.experiment import Experiment
from cmjax.metrics import cards
from cmjax.program import run_summaries, score_files
from cmjax.program.run_summaries import Score, Summary, section
from cmjax.run import charts, page, sentences, writer


class Beside(NamedTuple):
  """What the page of a student shows of its teacher.

  Attributes:
    rows: of the table of scores.
    curves: {name of a curve: value} of level lines.
    notes: what cannot be shown, and why.
  """

  rows: Sequence[Mapping[str, Any]] = ()
  curves: Mapping[str, float] = {}
  notes: Sequence[str] = ()


def finish(
  exp: Experiment,
  record: Mapping[str, Any],
  workdir: epath.Path,
  scores: Mapping[str, float],
  step: int,
) -> None:
  """Writes scores.json and the run's page, of the weights of a step."""
  write(exp, record, workdir, score_files.write(record, workdir, scores, step))


def write(
  exp: Experiment,
  record: Mapping[str, Any],
  workdir: epath.Path,
  scores: Mapping[str, float],
  notes: Sequence[str] = (),
) -> epath.Path:
  """Writes the run's page.

  Args:
    exp: the experiment.
    record: its config.
    workdir: of the run.
    scores: the newest.
    notes: paragraphs at the top.
  """
  data = section(record, "data").get("name", "")
  rows = score_files.rows(exp, scores)
  teacher = _teacher_of(exp.method.distils, record)
  beside = of_teacher(teacher, workdir, record, scores) if teacher and rows else Beside()
  if beside.rows:
    rows = [{"run": "this run", **row} for row in rows] + list(beside.rows)
  explained = _explained(record, scores)
  speeds = {group: text for group, text in explained.items() if text == sentences.SPEED}
  scored = {group: text for group, text in explained.items() if group not in speeds}
  terms = [(group.rstrip("/"), text) for group, text in scored.items() if text]
  terms += [("NFE", sentences.NFE)] * bool(terms) + _floor(workdir, record, scores)
  return writer.report(
    workdir,
    title=f"{workdir.name}: {exp.method.name} on {data}",
    config=dict(record),
    scores=rows,
    told=page.Told(
      kind=run_summaries.kind(exp.method.name),
      scores=scored,
      about=speeds,
      terms=terms,
      fixed=beside.curves,
      notes=[*notes, *beside.notes],
    ),
  )


def newest_scores(workdir: str | os.PathLike[str]) -> dict[str, tuple[int, float]]:
  """{name: (step, value)} of the newest scalars in a run's history."""
  return run_summaries.newest(writer.read_metrics(workdir))


# --- what the numbers are ---


def _explained(record: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, str]:
  """{group of `charts.groups`: what the score is} of all scores."""
  evals, found = section(record, "evals"), {}
  for name in scores:
    label, *rest = name.split("/")
    if label in evals:
      value = rest[-1] if len(rest) == 3 or (rest[0] == "floor" and len(rest) == 2) else ""
      group = f"{label}/{value}/" if value else f"{label}/"
      found[group] = sentences.score(section(evals, label), value)
  return found


def _floor(
  workdir: epath.Path, record: Mapping[str, Any], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
  """What the floor is, by a card that says of how many images."""
  label = next((name.partition("/")[0] for name in scores if "/floor" in name), None)
  if label is None:
    return []
  num = section(section(record, "evals"), label).get("num_samples")
  text = sentences.floor(_num_held_out(workdir, label), num if isinstance(num, int) else None)
  return [("floor", text)]


def _num_held_out(workdir: epath.Path, label: str) -> int | None:
  folder = workdir / cards.FOLDER
  for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
    if path.name.startswith(f"{label}_"):
      with contextlib.suppress(ValueError):
        return cards.read(path).get("floor_num")
  return None


# --- the teacher ---


def _teacher_of(distils: bool, record: Mapping[str, Any]) -> str:
  """The workdir of the run that a student learns or starts from; "" without one on disk."""
  for key in ("teacher", "init_from") if distils else ("init_from",):
    where = section(record, key).get("workdir")
    if isinstance(where, str) and where and not where.startswith("python:"):
      return where
  return ""


def of_teacher(
  teacher: str, workdir: epath.Path, record: Mapping[str, Any], scores: Mapping[str, float]
) -> Beside:
  """The teacher's scores that can be compared with a student's.

  Args:
    teacher: its workdir.
    workdir: of the student.
    record: of the student.
    scores: of the student.
  """
  try:
    theirs = run_summaries.read(paths.place(teacher))
  except (ValueError, OSError) as error:
    return Beside(notes=[f"The scores of the teacher in {teacher} could not be read: {error}"])
  newest = newest_scores(workdir)
  valued = {name: (newest.get(name, (None, 0.0))[0], value) for name, value in scores.items()}
  own, problems = run_summaries.scores_of(workdir, record, valued)
  ours = Summary(workdir, record, "", 0, None, {}, own, tuple(problems))
  rows, curves, notes = [], {}, []
  for score in theirs.scores:
    mine = next((one for one in ours.scores if one.name == score.name), None)
    if mine is None:
      continue
    if reasons := run_summaries.why_incomparable(ours, theirs, mine, score):
      notes.append(
        f"The teacher's {score.name} ({score.value:.4g}) is not shown beside this run's, since "
        f"they cannot be compared: {'; '.join(reasons)}."
      )
      continue
    rows.append(_row(score))
    label, _, value = score.name.partition("/")
    curve = f"{label}/{charts.TEACHER}{score.sampler}/{score.average}"
    curves[f"{curve}/{value}" if value else curve] = score.value
  return Beside(rows, curves, list(dict.fromkeys(notes)))


def _row(score: Score) -> dict[str, Any]:
  return {
    "run": "its teacher",
    "score": score.name,
    "sampler": score.sampler,
    "average": score.average,
    "NFE": score.nfe,
    "value": score.value,
    **score_files.of_floor(score.name, score.value, score.floor),
  }
