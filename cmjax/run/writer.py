"""What a run shows while it runs: metrics.jsonl, TensorBoard files, sample pictures, one live line.

A workdir then holds

    metrics.jsonl              one JSON object a line: step, time (Unix seconds), then name: value;
                               in a bucket it is in parts, metrics/000001.jsonl and on
    tensorboard/               the same scalars and pictures
    samples/{name}_{step}.png  grids of images, or densities of points
    samples/real.png           the same of training images
    report.html                all of it on one page, see `report`

`metrics.jsonl` is the record; everything else can be made again from it and from the pictures.
"""

import contextlib
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from cmjax.base import paths, place
from cmjax.base.atomic_files import replacing
from cmjax.run import history, pictures
from cmjax.run.events import Events
from cmjax.run.goodput import Goodput
from cmjax.run.live_line import LiveLine
from cmjax.run.page import read_metrics as read_metrics
from cmjax.run.page import report as report

logger = logging.getLogger("cmjax")

MAX_IMAGES = 100  # in one picture; a page of 13 such grids of 32x32 RGB images is about 5 MB
_SEPARATOR = 128
# From few points to many: dark blue, violet, red, orange, pale yellow.
_COLOURS = np.array(
  [[10, 12, 36], [62, 38, 122], [166, 48, 116], [240, 110, 60], [255, 240, 170]], np.float64
)


class Reporter:
  """Writes what happens in a run; on all hosts but one (`enabled=False`) it only keeps the pace.

  Opening it at `start_step=k` makes the history that of one uninterrupted run: records of steps
  > k and a half-written last line, which a killed run left behind, are dropped atomically, and
  TensorBoard is told to forget the same steps. Records of step k stay: those of its training are
  written before the checkpoint k is saved, those of its evaluators after it. Where an evaluator is
  run again at step k, `read_metrics` takes the later of its values. At `start_step=0` only step 0
  stays.

  Throughput is a mean over the last 64 calls of `progress` (16 s or more). It starts with the
  first call, so the compilation of the first step is outside it, and leaves out what happens
  within `paused()`.

  Args:
    workdir: on a disk, mounted, or in a bucket; made if missing.
    total_steps: the last step of the run, for the share done and the time left.
    batch_size: images (or points) in the global batch of one step.
    start_step: the step of the checkpoint the run goes on from, 0 for a fresh run.
    enabled: True on one host only.
    loggers: get what is written here as well, from the same host: objects with
      write(step, {name: number}), images(step, name, pixels uint8 [h, w, 3]) and close().
    stream: a text file for the live line (`live_line`); default stderr.
    log_every_sec: seconds between two lines where that is no terminal.
    clock: seconds, from any origin.
    goodput: that counts what the time goes into; it takes over what the history has of it. None: a
      new one.

  Raises:
    ValueError: for numbers below 1 (start_step: below 0), or a URL that is not served.
    OSError: if nothing can be written in the workdir.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    total_steps: int,
    batch_size: int,
    start_step: int = 0,
    enabled: bool = True,
    loggers: Sequence[Any] = (),
    stream: Any = None,
    log_every_sec: int | float = 30,
    clock: Callable[[], float] = time.monotonic,
    goodput: Goodput | None = None,
  ):
    for name, value, least in (
      ("total_steps", total_steps, 1),
      ("batch_size", batch_size, 1),
      ("start_step", start_step, 0),
    ):
      if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    self._enabled, self._clock, self._loggers = enabled, clock, tuple(loggers)
    self._total_steps, self._batch_size = total_steps, batch_size
    self._window: deque[tuple[int, float]] = deque(maxlen=64)  # (step, active seconds)
    self._latest = (start_step, 0.0)
    self._paused_at: float | None = None
    self._paused_sec = 0.0
    self.goodput = goodput or Goodput(clock)
    if not enabled:
      return
    self._workdir, appends = _writable(workdir)
    self.goodput.go_on(history.records(self._workdir), start_step, time.time())
    self._history = history.History(self._workdir, start_step, appends=appends)
    self._tensorboard = Events(self._workdir, start_step, appends=appends)
    self._line = LiveLine(stream, total_steps, log_every_sec)

  def __enter__(self) -> "Reporter":
    return self

  def __exit__(self, error: type[BaseException] | None, *_) -> None:
    # What a full disk does to the last lines must not hide the error that ended the run.
    with contextlib.suppress(OSError) if error else contextlib.nullcontext():
      self.close()

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends one record to metrics.jsonl, flushed, and the same scalars to TensorBoard.

    JSON has no number for them, so values that are not finite are the strings "nan", "inf" and
    "-inf"; `read_metrics` turns them back.

    Args:
      step: the step that the values belong to.
      scalars: name -> number or array without axes.

    Raises:
      ValueError: for a value with axes, or the names `step` and `time`.
    """
    if not self._enabled:
      return
    values = {name: _scalar(name, value) for name, value in scalars.items()}
    self._append(step, values)
    self._tensorboard.scalars(int(step), values)
    for logger in self._loggers:
      logger.write(int(step), values)

  def images(self, step: int, name: str, samples: Any) -> None:
    """Draws samples into samples/{name}_{step:08d}.png and TensorBoard.

    Args:
      step: the step that the samples belong to.
      name: letters, digits, `_`, `-` and `.`; the report shows one row for each name.
      samples: images `[n, h, w, c]` in [-1, 1], of which the first 100 are drawn, or
        points `[n, d]`; see `picture`. What has no picture is passed over, with a word in the log.

    Raises:
      ValueError: for a name that is no file name, or samples that cannot be drawn.
    """
    if not self._enabled:
      return
    if not re.fullmatch(r"[\w.-]+", name):
      raise ValueError(
        f"Picture name {name!r} becomes a file name: use letters, digits, '_', '-' and '.' only."
      )
    with self.paused():
      if (pixels := picture(samples)) is None:
        return
      path = self._workdir / pictures.FOLDER / f"{name}_{step:08d}.png"
      save_png(path, pixels)
      self._line.say(f"Drawn: {path}")
      self._tensorboard.image(int(step), name, pixels)
      for logger in self._loggers:
        logger.images(int(step), name, pixels)
      # An empty record: the report leaves out pictures of steps that the history has not reached,
      # which are those of a run that was killed and went back to a checkpoint.
      self._append(step, {})

  @contextlib.contextmanager
  def paused(self, kind: str = "evaluations") -> Iterator[None]:
    """Leaves the time inside `with reporter.paused("saves"):` out of throughput.

    Args:
      kind: of `goodput.KINDS`, what the time goes into.
    """
    if self._paused_at is not None:
      with self.goodput.spending(kind):
        yield
      return
    self._paused_at = self._clock()
    try:
      with self.goodput.spending(kind):
        yield
    finally:
      self._paused_sec += self._clock() - self._paused_at
      self._paused_at = None

  def scored(self, text: str) -> None:
    """Shows a score in the live line from here on: "fd one_step 0.11 (step 500)"."""
    if self._enabled:
      self._line.score = text

  def real_images(self, samples: Any) -> None:
    """Draws training samples into samples/real.png, for the report; as `images` draws samples."""
    if self._enabled and (pixels := picture(samples)) is not None:
      save_png(self._workdir / pictures.FOLDER / pictures.REAL, pixels)

  def throughput(self) -> dict[str, float]:
    """`steps_per_sec` and `images_per_sec` of the moving window; empty before the second step."""
    if not self._window:
      return {}
    steps, seconds = (b - a for a, b in zip(self._window[0], self._latest, strict=True))
    if steps <= 0 or seconds <= 0:
      return {}
    return {"steps_per_sec": steps / seconds, "images_per_sec": steps / seconds * self._batch_size}

  def progress(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Counts a step, and redraws the live line when it is due.

    Call it once the step's values are there (not only dispatched): the pace of these calls is the
    throughput. Values are read only when the line is drawn.

    Args:
      step: the number of steps done.
      scalars: of which the line shows what to watch, and `skipped` unless it is 0.
    """
    now = self._clock()
    self._latest = (int(step), now - self._paused_sec)
    if not self._window or self._latest[1] - self._window[-1][1] >= 0.25:
      self._window.append(self._latest)
    if not self._enabled:
      return
    if self._line.due(int(step), now):
      self._line.draw(int(step), scalars, self.throughput())

  def close(self) -> None:
    """Ends the live line and closes the files; a second call does nothing."""
    if not self._enabled or self._history.closed:
      return
    self._line.close()
    with contextlib.ExitStack() as last:  # whichever fails, the others are closed
      for thing in (*reversed(self._loggers), self._tensorboard, self._history):
        last.callback(thing.close)

  def _append(self, step: int, values: Mapping[str, float]) -> None:
    line = {"step": int(step), "time": round(time.time(), 3)}
    line |= {name: v if math.isfinite(v) else str(v) for name, v in values.items()}
    try:
      self._history.append(line)
    except OSError as error:
      raise OSError(
        f"{self._history.name} could not be written: {error.strerror or error}. Mend that (free "
        "some space, if the disk is full) and start the same command again: it goes on from its "
        "newest checkpoint."
      ) from error


def picture(samples: Any) -> np.ndarray | None:
  """Samples as pixels: the `grid` of at most 100 images, or the `density` of points.

  Images of two channels are red and green; of four and more, each channel is a grey image, side by
  side. Of points the first two coordinates are drawn, and a single one along the x axis.

  Returns:
    uint8 `[H, W, 3]`; None, with a word in the log, for samples that have no picture.
  """
  shape = np.shape(samples)
  if len(shape) == 2 and shape[1]:
    return density(samples[:, :2] if shape[1] > 1 else np.pad(samples, ((0, 0), (0, 1))))
  if len(shape) == 4 and 0 not in shape:
    return grid(_in_1_or_3_channels(np.asarray(samples[:MAX_IMAGES])))
  logger.warning(
    "Samples of shape %s have no picture: it is drawn of images [n, h, w, c] and points [n, d].",
    list(shape),
  )
  return None


def _in_1_or_3_channels(images: np.ndarray) -> np.ndarray:
  n, h, w, c = images.shape
  if c in (1, 3):
    return images
  if c == 2:
    return np.concatenate([images, np.full_like(images[..., :1], -1)], axis=-1)
  return images.transpose(0, 1, 3, 2).reshape(n, h, c * w, 1)


def grid(images: Any, *, columns: int | None = None) -> np.ndarray:
  """Images side by side, row by row, with lines of 1 pixel between them.

  Small images are enlarged by repeating pixels: 8x8 six times, 32x32 twice, 64x64 not at all.
  Values a little outside [-1, 1], as networks produce them, are clipped.

  Args:
    images: `[n, h, w, c]` floats in [-1, 1]; c is 1 (grey) or 3 (RGB).
    columns: images in a row; None for a near-square grid.

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    ValueError: for another rank or dtype, no images, NaN, or values beyond [-10, 10].
  """
  images = _finite(images, "images [n, h, w, c], with 1 or 3 channels")
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
    raise ValueError(
      f"Images must be [n, h, w, c] with 1 or 3 channels, got {images.shape}. "
      "Decode latents, and add the missing axes, before drawing."
    )
  if np.abs(images).max() > 10:
    raise ValueError(
      f"Image values must be in [-1, 1], got [{images.min():g}, {images.max():g}]. "
      "Use pixels / 127.5 - 1; clip the samples if a model that diverged is to be drawn."
    )
  n, h, w, c = images.shape
  columns = columns or math.ceil(math.sqrt(n))
  rows = math.ceil(n / columns)
  scale = max(1, round(48 / max(h, w)))
  pixels = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
  pixels = pixels.repeat(scale, 1).repeat(scale, 2)
  height, width = h * scale + 1, w * scale + 1
  canvas = np.full((rows * height - 1, columns * width - 1, 3), _SEPARATOR, np.uint8)
  for i, tile in enumerate(pixels):
    y, x = i // columns * height, i % columns * width
    canvas[y : y + height - 1, x : x + width - 1] = tile
  return canvas


def density(points: Any) -> np.ndarray:
  """The logarithm of a 2-D histogram over [-1.5, 1.5]^2: x to the right, y up.

  96 bins a side, 3 pixels each; log(1 + count), so that stray points stay visible beside a mode.
  Points outside the square are not drawn.

  Args:
    points: `[n, 2]` floats.

  Returns:
    uint8 `[288, 288, 3]`.

  Raises:
    ValueError: for another rank or dtype, no points, or values that are not finite.
  """
  points = _finite(points, "points [n, 2]")
  if points.ndim != 2 or points.shape[1] != 2 or not len(points):
    raise ValueError(f"Points must be [n, 2] with n > 0, got {points.shape}.")
  side = np.linspace(-1.5, 1.5, 97)
  counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(side, side))
  level = np.log1p(counts.T[::-1])  # rows of pixels go down, y goes up
  level = level / max(level.max(), 1e-9) * (len(_COLOURS) - 1)
  channels = [np.interp(level, np.arange(len(_COLOURS)), colour) for colour in _COLOURS.T]
  return np.rint(np.stack(channels, -1)).astype(np.uint8).repeat(3, 0).repeat(3, 1)


def save_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
  """Writes uint8 `[H, W, 3]` as a PNG, whole or not at all; makes the folder if needed."""
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
    raise ValueError(f"A picture is uint8 [H, W, 3], got {pixels.dtype} {pixels.shape}.")
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as file:
    Image.fromarray(pixels).save(file, format="PNG")


def _writable(workdir: str | os.PathLike) -> tuple[epath.Path, bool]:
  """The place of a run, and whether it can append."""
  path = paths.place(workdir, "workdir")
  try:
    return path, place.capabilities(path).appends
  except OSError as error:
    raise OSError(
      f"Cannot write in workdir {path}: {error}. "
      "Pass a folder that you own, on a disk that is not full: --workdir=/path/to/run."
    ) from error


def _scalar(name: str, value: Any) -> float:
  if name in ("step", "time"):
    raise ValueError(f"Metric name {name!r} is taken by the record itself; choose another.")
  array = np.asarray(value)
  if array.ndim:
    raise ValueError(f"Metric {name!r} must be one number, got shape {array.shape}: take a mean.")
  return float(array)


def _finite(samples: Any, what: str) -> np.ndarray:
  array = np.asarray(samples)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(f"Expected {what}, as floats, got {array.dtype}. Pixels: x / 127.5 - 1.")
  array = array.astype(np.float32)
  bad = array.size - np.count_nonzero(np.isfinite(array))
  if bad:
    raise ValueError(
      f"{bad} of {array.size} values are not finite; nothing was drawn. The parameters that made "
      "these samples hold NaN or inf: go back to a checkpoint before the loss stopped being finite."
    )
  return array
