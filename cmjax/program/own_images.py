"""From a folder of pictures to two pages that train on them: a teacher, and a few-step student.

Pictures are cropped to squares of one size, a tenth is held out, and the noise levels to train on
are measured. Steps, warm-ups and averages follow the number of pictures. What was chosen stands in
the pages, with the reason beside it.
"""

import datetime
import functools
import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax import experiment, pages
from cmjax.base import lock, paths
from cmjax.base.atomic_files import write_text
from cmjax.data import image_files, proposal, records, sources
from cmjax.data.prepare import originals, validation, writing
from cmjax.data.proposal import Proposal
from cmjax.program import preflight

logger = logging.getLogger("cmjax")

SIZES = (64, 32)
LEAST = 100  # pictures; fewer are learned by heart
PROBES = 48  # pictures that are looked at to choose a size and channels
HELD_OUT = 0.1
MAX_BAD = 0.02  # of all pictures
MEASURED = 5_000  # pictures that the noise levels are measured on
TIMED_BATCH = 8  # on a CPU, where the time is that of the images, not of the step
FILES = ("teacher.py", "student.py")
DATA = "data"


class Found(NamedTuple):
  """What is known of the prepared pictures.

  Attributes:
    source: where they came from.
    out: the folder that holds data and pages.
    size: of their side.
    channels: 3, or 1 of gray ones.
    num_train: for training.
    num_test: held out.
    sigma_data: their std on the scale of [-1, 1].
    teacher: noise levels for a diffusion model.
    student: noise levels for a consistency model.
  """

  source: str
  out: str
  size: int
  channels: int
  num_train: int
  num_test: int
  sigma_data: float
  teacher: Proposal
  student: Proposal


def check_places(source: str, out: str) -> tuple[Path, Path]:
  """The paths of the pictures and of the folder to make.

  Raises:
    ValueError: there are no pictures, or the folder has something in it, or lies among the
      pictures.
  """
  pictures, folder = paths.local(source, "the pictures"), paths.local(out, "--out")
  if not pictures.exists():
    raise ValueError(f"There is nothing at {pictures}. Give a folder or a .zip of pictures.")
  if pictures.is_file() and pictures.suffix.lower() not in (".zip", ".npz"):
    raise ValueError(f"{pictures} is one file. Give a folder or a .zip of pictures.")
  if pictures.is_dir() and folder.resolve().is_relative_to(pictures.resolve()):
    raise ValueError(
      f"--out={out} lies among the pictures of {pictures}: what is written there would count as "
      "pictures the next time. Take another --out, such as runs/photos."
    )
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--out={out} is a file. Take another --out.")
  there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
  if others := [name for name in there if name != DATA]:
    raise ValueError(
      f"--out={out} has {', '.join(others[:4])} in it already: nothing is written over. Take "
      "another --out, or remove it first."
    )
  return pictures, folder


def prepare(
  pictures: Path,
  out: Path,
  *,
  size: int | None,
  channels: int | None,
  max_bad: int | None,
  background: tuple[int, int, int],
  num_workers: int | None,
) -> Found:
  """Writes the prepared set, and measures it; what a stopped call has prepared is kept.

  Args:
    pictures: a folder, .zip or .npz.
    out: the set goes to its folder `data`.
    size: of the side of the squares; None: 64, or 32 where most pictures are smaller than 64.
    channels: 3 or 1; None: 1 where all that were looked at are gray.
    max_bad: pictures that cannot be read, before that is an error; None: 2 % of all.
    background: that alpha is laid over.
    num_workers: processes; None: one for each core.

  Raises:
    ValueError: there are too few pictures, too many that cannot be read, or they do not vary.
  """
  found = originals.find(str(pictures), labels="none")
  logger.info("%s", found.line(str(pictures)))
  if len(found) < LEAST:
    raise ValueError(
      f"{pictures} has {len(found)} pictures: of so few a network learns copies. Give at least "
      f"{LEAST}; 1,000 or more are better."
    )
  kinds = tuple(image_files.CONVERSIONS)
  max_bad = max(1, round(MAX_BAD * len(found))) if max_bad is None else max_bad
  likely_size, likely_channels = _look(found, kinds)
  size, channels = size or likely_size, channels or likely_channels
  recipe = writing.Recipe("center-crop", size, None, channels, kinds, background)
  with lock.hold(out / DATA, "prepare"):
    for split, chosen in writing.splits(len(found), HELD_OUT):
      made = writing.prepare(
        *(found, out / DATA, split, recipe), chosen=chosen, max_bad=max_bad, num_workers=num_workers
      )
      logger.info("%s", validation.summary(out / DATA / split, made))
  return measure(pictures, out)


def _look(found: originals.Originals, kinds: Sequence[str]) -> tuple[int, int]:
  """The size and the channels that fit most pictures, by some of them."""
  sides, gray = [], True
  for i in sources.spread(len(found), PROBES):
    try:
      image, _ = found.picture(int(i), kinds)
    except image_files.Damaged:
      continue
    sides.append(min(image.size))
    gray = gray and image.mode == "L"
  if not sides:
    raise ValueError(f"None of {PROBES} pictures that were tried can be read.")
  return (64 if np.median(sides) >= 64 else 32), (1 if gray else 3)


def measure(pictures: Path, out: Path) -> Found:
  """What the pages have to know of the set in `out`/data."""
  path = os.fspath(out / DATA)
  train, test = (records.records(path, split=split) for split in sources.SPLITS)
  gain = proposal.measure(sources.as_array(train, limit=MEASURED)[0])
  teacher = proposal.teacher(gain)
  sizes = (train.shape[0], train.shape[-1], len(train), len(test))
  student = proposal.consistency(teacher, sigma_data=gain.sigma_data)
  return Found(os.fspath(pictures), os.fspath(out), *sizes, gain.sigma_data, teacher, student)


# --- the pages ------------------------------------------------------------------------------------


def write_pages(found: Found) -> list[Path]:
  """Writes the two pages, and loads them."""
  texts = (teacher_page(found), student_page(found))
  written = [Path(found.out) / name for name in FILES]
  for path, text in zip(written, texts, strict=True):
    write_text(path, text)
    experiment.check(experiment.parse(pages.load(path)))
  return written


def _spec(page: str, found: Found) -> str:
  return f"{page}:{found.size}:{found.num_train}"


def _head(found: Found, what: str, name: str, needs: str, like: str) -> str:
  """The docstring of a page, and how it begins."""
  source, out = _plain(found.source), _plain(shlex.quote(found.out))
  return f'''r"""{found.num_train:,} pictures of {source}, {found.size}x{found.size}: {what}.

  cmjax train --config={out}/{name}.py --workdir={out}/{name}

Needs first: {needs}

Written by `cmjax start`; every line may be changed. It begins as configs/{like}.py.
"""

from cmjax import pages


def get_config():
  c = pages.load("{_spec(like, found)}").unlock()

  # The prepared pictures; {found.num_test:,} more are held out, to score against.
  c.data.records.path = {json.dumps(f"{found.out}/{DATA}")}
  c.net.in_channels = {found.channels}
  # The std of these pictures, on the scale of [-1, 1].
  c.sigma_data = {found.sigma_data:.3f}
'''


def _plain(text: str) -> str:
  """Text that may stand in a docstring."""
  return ascii(text)[1:-1].replace('"', "'")


def _lengths(found: Found, like: str) -> str:
  """Steps and averages, with their reasons."""
  c = pages.load(_spec(like, found))
  seen = c.total_steps * c.batch_size
  return f"""
  # Each picture is seen {seen / found.num_train:,.0f} times.
  c.batch_size = {c.batch_size}
  c.total_steps = {c.total_steps:_}
  # Samples are drawn from an average of the weights; half of it is of the last fiftieth of the run.
  c.ema.main.half_life_images = {c.ema.main.half_life_images:_}
"""


def teacher_page(found: Found) -> str:
  """The text of the page of the diffusion teacher."""
  c = pages.load(_spec("own_images_teacher", found))
  needs = f"nothing. The pictures are prepared in {_plain(found.out)}/{DATA}"
  head = _head(found, "the diffusion teacher", "teacher", needs, "own_images_teacher")
  return f"""{head}
  # The noise levels at which something can be learned of these pictures (measured).
  c.loss.P_mean, c.loss.P_std = {found.teacher.P_mean:.2f}, {found.teacher.P_std:.2f}
{_lengths(found, "own_images_teacher")}
  # The rate rises over the first twentieth of the run.
  c.optim.lr = {c.optim.lr}
  c.optim.schedule.warmup_steps = {c.optim.schedule.warmup_steps:_}

  # Mirrored pictures count as pictures. Set False if yours have text, or a left and a right.
  c.data.flip = {c.data.flip}
  # A few pictures are soon known by heart; dropout slows that down.
  c.net.dropout = {c.net.dropout}
  return c
"""


def student_page(found: Found) -> str:
  """The text of the page of the few-step student."""
  c = pages.load(_spec("own_images_scd", found))
  out = _plain(shlex.quote(found.out))
  needs = f"cmjax train --config={out}/teacher.py --workdir={out}/teacher"
  head = _head(found, "the few-step student", "student", needs, "own_images_scd")
  schedule = c.optim.schedule
  return f"""{head}
  # It learns from the teacher, and starts as a copy of it.
  c.teacher.workdir = c.init_from.workdir = {json.dumps(f"{found.out}/teacher")}
  # Noise levels that suit a student of that teacher (docs/methods.md).
  c.loss.P_mean, c.loss.P_std = {found.student.P_mean:.2f}, {found.student.P_std:.2f}
{_lengths(found, "own_images_scd")}
  # The tangent, which is what the student learns from, comes in over the first tenth of the run.
  c.loss.warmup_steps = {c.loss.warmup_steps:_}
  # The rate rises to its height and falls from a tenth of the run on, as the papers do it.
  c.optim.lr = {c.optim.lr}
  c.optim.schedule.update(
    decay_steps={schedule.decay_steps:_}, warmup_steps={schedule.warmup_steps:_}
  )
  c.data.flip = {c.data.flip}  # as the teacher's
  return c
"""


# --- how long it takes ----------------------------------------------------------------------------


class Hours(NamedTuple):
  """How long both trainings take on this machine, in seconds, without evaluations."""

  teacher: float
  student: float


def hours(found: Found) -> Hours:
  """Times some steps of the teacher here, and takes the student's by how much more it computes."""
  teacher, student = (
    experiment.parse(pages.load(Path(found.out) / name)) for name in FILES
  )  # fmt: skip
  mesh = experiment.make_mesh(teacher.run)
  if mesh.devices.flat[0].platform == "cpu":
    few = functools.partial(_with_batch, num=TIMED_BATCH * mesh.size)
  else:
    few = lambda exp: exp
  step = preflight.time_step(few(teacher), mesh)
  rate = step.flops / step.seconds
  student_flops = preflight.step_flops(few(student), mesh)
  logger.info(
    "A step of %d images took %.3g s: %.3g GFLOP a second.",
    *(few(teacher).run.batch_size, step.seconds, rate / 1e9),
  )
  of_each = ((teacher, step.flops), (student, student_flops))
  per_image = [flops / few(exp).run.batch_size for exp, flops in of_each]
  images = [exp.run.total_steps * exp.run.batch_size for exp, _ in of_each]
  return Hours(*(n * flops / rate for n, flops in zip(images, per_image, strict=True)))


def _with_batch(exp: experiment.Experiment, num: int) -> experiment.Experiment:
  return exp._replace(run=exp.run._replace(batch_size=min(num, exp.run.batch_size)))


def spoken_hours(found: Found) -> tuple[str, str]:
  """How long teacher and student take here, in words."""
  teacher, student = hours(found)
  return f"about {spoken(teacher)}", f"about {spoken(student)}"


def spoken(seconds: float) -> str:
  """A time as people say it.

  >>> spoken(50.0), spoken(5e3), spoken(2e4), spoken(4e5)
  ('1 minute', '83 minutes', '5.6 hours', '4.6 days')
  """
  if seconds < 5_400:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes > 1)}"
  if seconds < 172_800:
    return f"{seconds / 3600:.1f} hours"
  return f"{seconds / datetime.timedelta(days=1).total_seconds():.1f} days"
