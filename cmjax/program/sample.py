"""What a finished run is used for: samples, scores; and what a data set measures."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.base import lock, paths, sharding, shared_folder
from cmjax.data import image_sets, proposal, sources, summary
from cmjax.experiment import Experiment
from cmjax.metrics import cards, evaluators, references
from cmjax.program import drawing, identity, run_report, score_files, searched_times, stored_runs
from cmjax.program.course import key_for
from cmjax.samplers.search_times import search

logger = logging.getLogger("cmjax")


def sample(
  exp: Experiment,
  workdir: str | os.PathLike[str],
  *,
  ema: str | None = None,
  **drawn: Any,
) -> list[epath.Path]:
  """Draws samples from an average of the newest good checkpoint, or from a post-hoc one.

  Args:
    exp: the experiment; its samplers are used.
    workdir: of the run.
    ema: the average's name; None: the first of the run.
    **drawn: how many, which, and where to: the fields of `drawing.Drawn`.

  Returns:
    What was written to workdir/samples: a picture and an .npz of each sampler, or with `seeds` a
    folder of pictures, one a number (`program/numbered.py`). In an .npz of images are `arr_0`,
    uint8 [n, h, w, c], and `arr_1`, their classes where there are some; in one of points, or of
    latents, `samples` [n, *d] as the network gives them. Of latents there are images where
    config.data.records.vae makes them.
  """
  wanted = drawing.Drawn(**drawn)
  drawing.check(wanted)
  shared_folder.check(paths.place(workdir))
  mesh = experiment.make_mesh(exp.run)
  ema = ema or stored_runs.averages_of(workdir)[0]
  check, known = _check_own(exp, workdir)
  _, params, step = stored_runs.load_average(workdir, ema, mesh, exp.network, check)
  exp = searched_times.use(exp, workdir, stored_runs.weights_of(workdir, step))
  guides = stored_runs.load_guides(exp, mesh)
  run = paths.absolute(paths.place(workdir))
  weights = drawing.Weights(
    *(exp, mesh, params, stored_runs.models(guides)),
    class_names=(known.get("data") or {}).get("class_names", ()),
    made_of={
      "weights": stored_runs.weights_of(workdir, step, ema),
      "average": ema,
      "guides": {key: dict(one.weights or {}) for key, one in guides.items()},
    },
    stem=f"{ema}_step{step}",
    folder=run / "samples",
    locked=run,
  )
  return drawing.draw(weights, wanted)


def _check_own(
  exp: Experiment, workdir: str | os.PathLike[str]
) -> tuple[Callable[[Mapping[str, Any]], None], dict[str, Any]]:
  """What raises where an experiment is not that of a run's weights; and the run's identity.

  The identity is there once the first was called with what is beside the weights. It is empty where
  the run has none.
  """
  record, known = experiment.stored_record(exp), {}

  def check(meta: Mapping[str, Any]) -> None:
    identity.check_trained(record, meta["config"], workdir)
    known.update(meta.get("identity") or {})

  return check, known


def evaluate(exp: Experiment, workdir: str | os.PathLike[str]) -> str:
  """Runs config.evals on the newest good checkpoint, rewrites scores.json, cards and the report.

  Scores that are there of the same weights, from more samples, stay: see `score_files.held`.

  Returns:
    The scores, one a line, then the cards, each with its numbers and their floors.

  Raises:
    ValueError: another process scores the run.
    OSError: the workdir was renamed meanwhile.
  """
  shared_folder.check(paths.place(workdir))
  emas = stored_runs.averages_of(workdir)  # before a folder is made of a mistyped name
  workdir, primary = paths.absolute(paths.place(workdir)), sharding.process()[0] == 0
  with lock.hold(workdir, "evaluate", primary=primary, agree=sharding.all_agree) as check_workdir:
    return _evaluate(exp, workdir, emas, check_workdir)


def _evaluate(
  exp: Experiment, workdir: epath.Path, emas: Sequence[str], check_workdir: Callable[[], None]
) -> str:
  mesh = experiment.make_mesh(exp.run)
  named = {name for one in exp.evaluators.values() for name in one.emas}
  names = dict.fromkeys([*emas, *sorted(named)])
  check, known = _check_own(exp, workdir)
  run, averages, step = stored_runs.load_averages(workdir, names, mesh, exp.network, check)
  exp = searched_times.use(exp, workdir, stored_runs.weights_of(workdir, step))
  record = experiment.stored_record(exp)
  record |= {key: run.record[key] for key in identity.PAST if key in run.record}
  exp = identity.with_checked_data(exp, known, workdir)
  scores, cards_written, primary = {}, [], sharding.process()[0] == 0
  guides = stored_runs.models(stored_runs.load_guides(exp, mesh))
  kept = stored_runs.kept(workdir, lambda: experiment.opened(exp))
  opened = experiment.open_evaluators(exp, mesh, guides, emas=averages, kept=kept)
  held = score_files.held(record, workdir, step)
  for label, evaluate in opened.items():
    for name, value in evaluate(averages, key_for(exp.run.seed, "evaluate")):
      check_workdir()
      if isinstance(value, Mapping):
        if primary and label in held:
          cards_written.append(_told(f"{label}_{name}, not written", value))
        elif primary:
          card = f"{label}_{name}"
          path = score_files.write_card(run.record, workdir, step, card, value, known)
          cards_written.append(_told(path, value))
      elif not jnp.ndim(value):
        scores[f"{label}/{name}"] = float(value)
  if primary:
    run_report.finish(exp, record, workdir, scores, step)
  lines = (f"{name}: {value:.5g}" for name, value in scores.items())
  return "\n".join([f"step {step}", *lines, *cards_written])


def _told(path: epath.Path | str, card: Mapping[str, Any]) -> str:
  return f"{path}: {', '.join(cards.lines(card))}"


def evaluate_images(exp: Experiment, workdir: str | os.PathLike[str], images: str | Path) -> str:
  """Scores images that are there already with the Frechet evaluators of config.evals.

  Args:
    exp: its data and evaluators; samplers and averages do not matter.
    workdir: the cards go to its folder `cards`; made if it is not there.
    images: a folder or an .npz, see `image_sets.read`.

  Returns:
    The cards, each with its numbers and their floors.
  """
  data, workdir, told = image_sets.read(images), paths.absolute(paths.place(workdir)), []
  mesh = experiment.make_mesh(exp.run)
  labels = experiment.scorers(exp)
  if not labels:
    raise ValueError("--images are scored by the 'frechet' evaluators of config.evals: add one.")
  _check_shape(exp, data, mesh, images)
  _say(exp, data, f"--images {Path(images).name}")
  for label in labels:
    scorer, to_images = experiment.scorer(exp, label, mesh)
    card = evaluators.image_card(scorer, experiment.image_batches(data, to_images))
    card["images"] |= {"kind": "given", "name": Path(images).name}
    if data[0]["image"].dtype == np.uint8:
      card["rounding"] = cards.GIVEN
    if sharding.process()[0] == 0:
      told.append(
        _told(score_files.write_image_card(workdir, f"{label}_{Path(images).stem}", card), card)
      )
  return "\n".join(told)


def _say(exp: Experiment, data: sources.Source, what: str) -> None:
  """The opening line of images, and a warning where they are not scaled as the data is."""
  if sharding.process()[0]:
    return
  images, training = summary.log(data, what), experiment.opened(exp)
  if training.shape == data.shape:
    if warning := summary.compare(images, summary.summarise(training, "data")):
      logger.warning("%s: %s", what, warning)


def _check_shape(exp: Experiment, data: sources.Source, mesh: Mesh, images: str | Path) -> None:
  expected, decoding = (
    tuple(experiment.opened(exp).shape),
    experiment.decoder(exp.samples, mesh),
  )
  if decoding and data[0]["image"].dtype == np.uint8:
    expected = decoding.shape
  if tuple(data.shape) != expected:
    raise ValueError(
      f"The images in {images} are {list(data.shape)}, those of config.data {list(expected)}: a "
      "resize would change the score. Bring them to one shape first."
    )


def make_reference(exp: Experiment, to: str | Path) -> str:
  """Writes what the first Frechet evaluator of config.evals needs of the training split.

  evals.{label}.reference=FILE then takes the place of looking at all images anew.

  Args:
    exp: its data, and the features and scores of the evaluator.
    to: the .npz, or .pkl as EDM2 has it.
  """
  found = experiment.reference(exp, None, experiment.make_mesh(exp.run))
  if sharding.process()[0] == 0:
    references.write(to, found)
  return f"{to}: {found.record['num']:,} images, {found.record['detector']['name']}"


SURE = 2.0  # standard errors by which times must be better than those that are in use


def search_times(
  exp: Experiment,
  workdir: str | os.PathLike[str],
  *,
  name: str | None,
  num_samples: int | None = None,
  num_probes: int,
  seed: int,
) -> str:
  """Searches the intermediate times of the samplers of 2 to 4 steps, for the first average.

  What was found is then compared with the times in use, both from noise that the search has not
  seen. Where it is better by more than twice its standard error, it is written to
  sampler_times.json in the workdir: modes sample and evaluate take times from there for the same
  weights, unless samplers.{name}.searched is False. Otherwise nothing is written.

  Args:
    exp: its samplers, and its Frechet evaluator for the features.
    workdir: of the run.
    name: one of config.samplers; None: all that have intermediate times.
    num_samples: of each probe; None: as many as the distance needs, see `experiment.search_score`.
    num_probes: per intermediate time.
    seed: of the noise, the same for every probe.

  Returns:
    What was found, one sampler a line.
  """
  if num_probes < 5:
    raise ValueError(
      f"--num_probes={num_probes} must be at least 5: three to bracket, two to refine"
    )
  experiment.check_seed(seed, "--seed")
  mesh = experiment.make_mesh(exp.run)
  ema = stored_runs.averages_of(workdir)[0]
  check, known = _check_own(exp, workdir)
  trained = stored_runs.load_averages(workdir, (ema,), mesh, exp.network, check)
  params, weights = trained.averages[ema], stored_runs.weights_of(workdir, trained.step)
  exp = identity.with_checked_data(exp, known, workdir)
  exp = searched_times.use(exp, workdir, weights)
  keys = [name] if name else [k for k, s in exp.samplers.items() if s.draw_at and s.nfe > 1]
  if not keys:
    raise ValueError("No sampler of this config has intermediate times to search.")
  lines, found = [], {}
  for key in keys:
    judge = experiment.search_score(exp, key, mesh, params, jax.random.key(seed), num_samples)
    line, entry = _search(exp, key, judge, num_probes)
    lines.append(line)
    if entry:
      found[key] = {**entry, "step": trained.step, "weights": weights}
  if found:
    searched_times.write(workdir, found)
  return "\n".join(lines)


def _search(
  exp: Experiment, key: str, judge: experiment.SearchScore, num_probes: int
) -> tuple[str, dict[str, Any]]:
  """The times of one sampler: a line of what was found, and what is to be kept; {} for nothing."""
  low, high = (float(np.arctan2(sigma, exp.run.sigma_data)) for sigma in (0.02, 20.0))
  best = search(judge.score, judge.num_steps, low=low, high=high, num_probes=num_probes)
  used = tuple(exp.samplers[key].times[1:].tolist())
  gain, error = judge.gain(best.times, used)
  _warn_of_noise(key, judge, best.score, error)
  angles, before = (", ".join(f"{t:.4f}" for t in times) for times in (best.times, used))
  sigmas = ", ".join(f"{exp.run.sigma_data * np.tan(t):.4g}" for t in best.times)
  line = f"{key}: mid_times=({angles}), sigma {sigmas}; distance {best.score:.5g}"
  against = f"+- {error:.2g} {{}} than ({before}) from other noise"
  if not gain > SURE * error:
    said = f"{abs(gain):.3g} {against.format('worse' if gain < 0 else 'better')}"
    sure = "" if gain < 0 else ", which is not sure"
    return f"{line}. It is {said}{sure}: ({before}) stays", {}
  entry = {
    "mid_times": best.times,
    "score": best.score,
    "num_samples": judge.num_samples,
    "gain": {"over": used, "value": gain, "standard_error": error},
    "probes": [{"mid_times": times, "score": value} for times, value in best.history],
  }
  return f"{line}. It is {gain:.3g} {against.format('better')}: kept", entry


def _warn_of_noise(key: str, judge: experiment.SearchScore, score: float, error: float) -> None:
  """Says where the number of samples is most of what a search has seen."""
  bias = judge.bias()
  if bias > score / 2:
    logger.warning(
      "samplers.%s: %s perfect samples would have a distance of %.3g, more than half of the %.3g "
      "here, and differences are known to +-%.2g: the search sees mostly the number of samples. "
      "Raise --num_samples.",
      *(key, f"{judge.num_samples:,}", bias, score, error),
    )


def measure(exp: Experiment) -> str:
  """What to set sigma_data, P_mean and P_std to: a line of JSON, then the same in words."""
  source = exp.source("train")  # of any shape: the flags for it are part of the answer
  found = sources.statistics(source, max_items=50_000)
  found["shape"] = list(found["shape"])
  words = [f"config.sigma_data is {exp.run.sigma_data}; the std of the data is {found['std']:.4f}."]
  try:
    gain = proposal.measure(sources.as_array(source, limit=20_000)[0])
    teacher = proposal.teacher(gain)
  except ValueError as error:
    return "\n".join([json.dumps(found), *words, f"No proposal: {error}", *_flags(found)])
  model = proposal.consistency(teacher, sigma_data=gain.sigma_data)
  found |= {"teacher": teacher._asdict(), "consistency": model._asdict()}
  words += [
    f"{what}: P_mean={p.P_mean:.1f}, P_std={p.P_std:.1f} to start from."
    for what, p in (("a diffusion teacher", teacher), ("a consistency model", model))
  ]
  peak = int(np.argmax(gain.best))
  words += [
    f"Most can be learned at sigma={np.exp(gain.log_sigma[peak]):.2g}: {gain.best[peak]:.0%} of "
    "the error of knowing only mean and variance. docs/guides/tuning.md says how to go on."
  ]
  return "\n".join([json.dumps(found), *words, *_flags(found)])


def _flags(found: Mapping[str, Any]) -> list[str]:
  """What to paste behind a command, so that its page fits the data; for each kind of page."""
  values = {"sigma_data": f"{found['std']:.3f}"}
  if len(found["shape"]) == 3:
    values |= {"net.resolution": found["shape"][0], "net.in_channels": found["shape"][-1]}
    values |= {"net.num_classes": found["num_classes"]}
  lines, kinds = [], {"teacher": "a diffusion teacher", "consistency": "sCT or sCD"}
  for key, what in kinds.items() if "teacher" in found else ():
    noise = {f"loss.{name}": f"{value:.2f}" for name, value in found[key].items()}
    flags = (f"--config.{name}={value}" for name, value in (values | noise).items())
    lines.append(f"To paste, for {what}: {' '.join(flags)}")
  return lines or ["To paste: " + " ".join(f"--config.{k}={v}" for k, v in values.items())]
