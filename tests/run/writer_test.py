import base64
import io
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from cmjax.base import atomic_files, place
from cmjax.base.atomic_files import replacing
from cmjax.run import goodput, sentences, writer
from cmjax.run import page as page_of_run


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def open_reporter():
  opened = []

  def make(workdir, **kwargs):
    kwargs = {"total_steps": 100, "batch_size": 4, "stream": io.StringIO()} | kwargs
    opened.append(writer.Reporter(workdir, **kwargs))
    return opened[-1]

  yield make
  for reporter in opened:
    reporter.close()


def lines(workdir):
  return (workdir / "metrics.jsonl").read_text().splitlines()


def steps(workdir):
  return [json.loads(line)["step"] for line in lines(workdir)]


def write_report(workdir, **kwargs):
  kwargs = {"title": "A run", "config": {}, "scores": []} | kwargs
  return writer.report(workdir, **kwargs).read_text()


def events(workdir):
  """The events of all TensorBoard files, oldest file first, by the TFRecord framing."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (size,) = struct.unpack_from("<Q", data, at)
      found.append(Event.FromString(data[at + 12 : at + 12 + size]))
      at += size + 16
  return found


# --- metrics.jsonl ---


def test_a_record_is_one_flushed_line_of_json(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path / "new" / "run")
  reporter.write(3, {"loss": 0.25, "lr": np.float32(0.5), "n": np.array(7)})
  (line,) = lines(tmp_path / "new" / "run")  # before close
  record = json.loads(line)
  assert record.pop("time") > 1.7e9
  assert record == {"step": 3, "loss": 0.25, "lr": 0.5, "n": 7.0}


def test_metrics_are_read_back_by_rising_step_and_the_later_line_wins(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  reporter.write(10, {"fd": 3.0, "swd": 9.0})
  reporter.write(9, {"loss": 0.5})  # the loop reports the step before after an evaluation
  reporter.write(10, {"loss": 0.25, "fd": 2.0})
  reporter.write(8, {"loss": 1.0})
  history = writer.read_metrics(tmp_path)
  assert {k: (s.tolist(), v.tolist()) for k, (s, v) in history.items()} == {
    "fd": ([10], [2.0]),
    "swd": ([10], [9.0]),
    "loss": ([8, 9, 10], [1.0, 0.5, 0.25]),
  }
  assert history["loss"][0].dtype == np.int64 and history["loss"][1].dtype == np.float64


def test_values_that_are_not_finite_are_strings_in_strict_json_and_come_back(
  tmp_path, open_reporter
):
  values = [np.nan, np.inf, -np.inf, 1e300]
  reporter = open_reporter(tmp_path)
  for step, value in enumerate(values):
    reporter.write(step, {"loss": value})

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  records = [json.loads(line, parse_constant=refuse) for line in lines(tmp_path)]
  assert [r["loss"] for r in records] == ["nan", "inf", "-inf", 1e300]
  np.testing.assert_array_equal(writer.read_metrics(tmp_path)["loss"][1], values)


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_the_reader_leaves_out_a_half_written_last_line(tmp_path, open_reporter, cut):
  reporter = open_reporter(tmp_path)
  for step in range(3):
    reporter.write(step, {"loss": 1.5 * step})
  path = tmp_path / "metrics.jsonl"
  last = path.read_bytes().rindex(b'{"step"')
  path.write_bytes(path.read_bytes()[: last + cut])
  assert writer.read_metrics(tmp_path)["loss"][1].tolist() == [0.0, 1.5]


def test_a_damaged_line_before_the_last_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "ti\n{"step": 2, "time": 5.0}\n')
  with pytest.raises(ValueError, match="record 1 of 2 .* remove that line"):
    writer.read_metrics(tmp_path)


def test_a_run_without_a_history_reads_as_empty(tmp_path):
  assert writer.read_metrics(tmp_path) == {}


def test_a_run_killed_and_resumed_twice_has_each_step_once(tmp_path, open_reporter):
  for start, killed_at in ((0, 7), (4, 9), (8, 10)):
    reporter = open_reporter(tmp_path, start_step=start)
    for step in range(start + 1, killed_at + 1):
      reporter.write(step, {"loss": start + step / 100})
    with open(tmp_path / "metrics.jsonl", "a") as file:  # killed in the middle of the next line
      file.write('{"step": 11, "time": 17')
  at, values = writer.read_metrics(tmp_path)["loss"]
  assert at.tolist() == list(range(1, 11))
  assert values.tolist() == [0.01, 0.02, 0.03, 0.04, 4.05, 4.06, 4.07, 4.08, 8.09, 8.10]
  open_reporter(tmp_path, start_step=10)
  assert steps(tmp_path) == list(range(1, 11))  # the half-written line is gone from the file too
  assert not list(tmp_path.glob("*.partial"))


def test_a_resume_keeps_evaluations_of_its_own_step_and_the_bytes_before(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  reporter.write(4, {"loss": 0.1 + 0.2})
  reporter.write(5, {"fd": np.nan})
  reporter.write(5, {"loss": 1.0})
  kept = lines(tmp_path)
  reporter.write(6, {"loss": 2.0})
  open_reporter(tmp_path, start_step=5)
  assert lines(tmp_path) == kept


def test_a_kill_while_the_history_is_cut_leaves_the_old_one(tmp_path, open_reporter, monkeypatch):
  reporter = open_reporter(tmp_path)
  for step in range(4):
    reporter.write(step, {"loss": 1.0})
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def killed(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(atomic_files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      open_reporter(tmp_path, start_step=1)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  open_reporter(tmp_path, start_step=1)
  assert steps(tmp_path) == [0, 1]


def test_metrics_must_be_single_numbers_under_free_names(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  with pytest.raises(ValueError, match=r"'loss' must be one number, got shape \(2,\)"):
    reporter.write(1, {"loss": np.zeros(2)})
  with pytest.raises(ValueError, match="'step' is taken"):
    reporter.write(1, {"step": 1.0})
  assert lines(tmp_path) == []


# --- opening and closing ---


def test_a_workdir_that_cannot_be_written_is_refused_with_advice(tmp_path, open_reporter):
  (tmp_path / "file").write_text("")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(OSError, match="Cannot write in workdir .* Pass a folder"):
      open_reporter(workdir)
  with pytest.raises(ValueError, match="is a URL.*Mount it"):
    open_reporter("az://bucket/run")


def test_the_probe_write_finds_a_full_or_read_only_disk(tmp_path, open_reporter, monkeypatch):
  def full(folder, name):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(place, "_wait_until_listed", full)
  with pytest.raises(OSError, match="No space left on device.*--workdir="):
    open_reporter(tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"total_steps": 0}, {"batch_size": 0}, {"start_step": -1}])
def test_numbers_out_of_range_are_named(tmp_path, open_reporter, wrong):
  with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
    open_reporter(tmp_path, **wrong)


def test_a_disabled_reporter_writes_nothing(tmp_path, open_reporter):
  stream = Terminal()
  with open_reporter(tmp_path / "run", enabled=False, stream=stream) as reporter:
    reporter.write(1, {"loss": 1.0})
    reporter.images(1, "samples", np.zeros((2, 4, 4, 1)))
    with reporter.paused():
      reporter.progress(1, {"loss": 1.0})
    reporter.progress(100, {"loss": 1.0})
    assert reporter.throughput() == {}
  assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ""


def test_the_context_closes_the_files_also_after_an_error(tmp_path, open_reporter):
  with pytest.raises(ZeroDivisionError), open_reporter(tmp_path) as reporter:
    reporter.write(1, {"loss": 1.0})
    raise ZeroDivisionError
  with pytest.raises(ValueError, match="closed file"):
    reporter.write(2, {"loss": 1.0})
  assert any(event.summary.value for event in events(tmp_path))


# --- TensorBoard ---


def test_tensorboard_holds_the_same_scalars_and_pictures(tmp_path, open_reporter):
  with open_reporter(tmp_path) as reporter:
    reporter.write(5, {"loss": 0.5, "tangent_norm/t0.00-0.39": 2.0})
    reporter.images(5, "samples", np.zeros((2, 8, 8, 1)))
  values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
  assert values["loss"][0] == 5 and values["loss"][1].simple_value == 0.5
  assert values["tangent_norm/t0.00-0.39"][1].simple_value == 2.0
  step, value = values["samples"]
  pixels = Image.open(io.BytesIO(value.image.encoded_image_string))
  saved = Image.open(tmp_path / "samples" / "samples_00000005.png")
  assert step == 5
  np.testing.assert_array_equal(np.asarray(pixels), np.asarray(saved))


def test_a_resume_in_the_same_second_keeps_the_old_events_and_purges_later_steps(
  tmp_path, open_reporter
):
  for start in (0, 5):
    with open_reporter(tmp_path, start_step=start) as reporter:
      reporter.write(start + 1, {"loss": float(start)})
  found = events(tmp_path)
  assert [e.summary.value[0].simple_value for e in found if e.summary.value] == [0.0, 5.0]
  assert [e.step for e in found if e.HasField("session_log")] == [1, 6]


# --- pictures ---


def test_a_grid_of_four_images_has_exactly_these_pixels():
  a, b, c, d = -1.0, -0.5, 0.5, 1.0
  images = np.array([a, b, c, d]).reshape(4, 1, 1, 1) * np.ones((4, 40, 40, 1))
  images[1, 0, 39] = 1.0  # upper right corner of the upper right tile
  images[2, 39, 0] = -1.0  # lower left corner of the lower left tile
  pixels = writer.grid(images)
  assert pixels.shape == (81, 81, 3) and pixels.dtype == np.uint8
  expected = np.full((81, 81), 128)
  expected[:40, :40], expected[:40, 41:] = 0, 64
  expected[41:, :40], expected[41:, 41:] = 191, 255
  expected[0, 80], expected[80, 0] = 255, 0
  np.testing.assert_array_equal(pixels, np.stack([expected] * 3, -1))


def test_a_small_colour_image_is_enlarged_by_repeating_pixels():
  image = np.linspace(-1, 1, 8 * 8 * 3).reshape(1, 8, 8, 3)
  pixels = writer.grid(image)
  assert pixels.shape == (48, 48, 3)
  small = np.rint((image[0] + 1) * 127.5)
  np.testing.assert_array_equal(pixels, np.kron(small, np.ones((6, 6, 1))))


def test_the_last_row_of_a_grid_may_be_short_and_overshoot_is_clipped():
  pixels = writer.grid(np.full((3, 48, 48, 1), 1.3))
  assert (pixels[:48] == 255)[:, :48].all() and (pixels[49:, :48] == 255).all()
  assert (pixels[49:, 49:] == 128).all()


def test_half_precision_samples_are_drawn_alike():
  jnp = pytest.importorskip("jax.numpy")
  images = np.random.default_rng(0).integers(-4, 5, (2, 8, 8, 1)) / 4
  half = writer.grid(jnp.asarray(images, jnp.bfloat16))
  np.testing.assert_array_equal(half, writer.grid(images))


@pytest.mark.parametrize(
  "images, message",
  [
    (np.zeros((2, 8, 8)), r"\[n, h, w, c\].*got \(2, 8, 8\)"),
    (np.zeros((2, 8, 8, 4)), "Decode latents"),
    (np.zeros((0, 8, 8, 1)), "got .0, 8, 8, 1"),
    (np.zeros((2, 8, 8, 1), np.uint8), "as floats, got uint8"),
    (np.full((2, 8, 8, 1), 255.0), r"must be in \[-1, 1\], got \[255, 255\]"),
    (np.where(np.arange(64).reshape(1, 8, 8, 1) == 5, np.nan, 0.0), "1 of 64 values are not"),
    (np.full((1, 8, 8, 1), -np.inf), "64 of 64 values are not finite"),
  ],
)
def test_a_grid_refuses_what_is_not_images(images, message):
  with pytest.raises(ValueError, match=message):
    writer.grid(images)


def test_density_puts_x_to_the_right_and_y_up():
  pixels = writer.density(np.array([[1.49, -1.49]] * 5 + [[-1.49, 0.01]] + [[9.0, 9.0]]))
  assert pixels.shape == (288, 288, 3) and pixels.dtype == np.uint8
  background = pixels[0, 0]
  drawn = (pixels != background).any(-1)
  assert drawn[285:, 285:].all()  # x = 1.49, y = -1.49: the lower right corner
  assert drawn[141:144, :3].all()  # x = -1.49, y just above 0: left, the row above the middle
  assert drawn.sum() == 2 * 9  # and nothing else: the point at 9 is outside
  assert pixels[287, 287].sum() > pixels[142, 1].sum() > background.sum()  # more is brighter


@pytest.mark.parametrize(
  "points, message",
  [
    (np.zeros((5, 3)), r"\[n, 2\] with n > 0, got \(5, 3\)"),
    (np.zeros((0, 2)), "n > 0"),
    (np.array([[0.0, np.nan]]), "1 of 2 values are not finite"),
    (np.zeros((5, 2), np.int32), "as floats, got int32"),
  ],
)
def test_density_refuses_what_is_not_points(points, message):
  with pytest.raises(ValueError, match=message):
    writer.density(points)


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_images_of_any_number_of_channels_have_a_picture(channels):
  images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, channels))
  if channels == 2:
    expected = writer.grid(np.pad(images, ((0, 0),) * 3 + ((0, 1),), constant_values=-1))
  else:  # side by side
    expected = writer.grid(np.concatenate(np.split(images, channels, axis=-1), axis=2))
  np.testing.assert_array_equal(writer.picture(images), expected)


@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_points_of_any_dimension_have_a_picture(dim):
  points = np.random.default_rng(0).uniform(-1, 1, (50, dim))
  plane = np.concatenate([points, np.zeros((50, 1))], axis=1)[:, :2]
  np.testing.assert_array_equal(writer.picture(points), writer.density(plane))


def test_what_has_no_picture_is_passed_over_with_a_word(tmp_path, open_reporter, caplog):
  reporter = open_reporter(tmp_path)
  for shape in ((4, 5, 6), (4, 2, 8, 8, 3), (4, 8, 0, 3)):
    reporter.images(0, "volume", np.zeros(shape))
    assert f"Samples of shape {list(shape)} have no picture" in caplog.text
  assert not (tmp_path / "samples").exists()


def test_images_draws_a_grid_or_a_density_under_name_and_step(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  images, points = np.linspace(-1, 1, 768).reshape(4, 8, 8, 3), np.linspace(-1, 1, 8).reshape(4, 2)
  reporter.images(1200, "digits_1step", images)
  reporter.images(1200, "ring", points)
  for name, pixels in (
    ("digits_1step", writer.grid(images)),
    ("ring", writer.density(points)),
  ):
    saved = Image.open(tmp_path / "samples" / f"{name}_00001200.png")
    np.testing.assert_array_equal(np.asarray(saved), pixels)
  with pytest.raises(ValueError, match="'a/b' becomes a file name"):
    reporter.images(1, "a/b", images)
  with pytest.raises(ValueError, match="uint8"):
    writer.save_png(tmp_path / "x.png", np.zeros((2, 2, 3)))


# --- the live line ---


def test_throughput_leaves_out_compilation_and_pauses(tmp_path, open_reporter):
  clock = Clock()
  reporter = open_reporter(tmp_path, start_step=50, batch_size=32, clock=clock)
  clock.now += 60  # the first step compiles
  reporter.progress(51, {})
  assert reporter.throughput() == {}
  for step in range(52, 60):
    clock.now += 0.5
    reporter.progress(step, {})
    if step == 55:
      with reporter.paused():
        clock.now += 30
        reporter.images(step, "x", np.zeros((1, 8, 8, 1)))  # pauses inside pauses count once
        clock.now += 30
  assert reporter.throughput() == {"steps_per_sec": 2.0, "images_per_sec": 64.0}


def test_throughput_follows_a_change_of_pace(tmp_path, open_reporter):
  clock = Clock()
  reporter = open_reporter(tmp_path, total_steps=500, clock=clock)
  for step in range(1, 301):
    clock.now += 1.0 if step <= 200 else 0.5
    reporter.progress(step, {})
  assert reporter.throughput()["steps_per_sec"] == pytest.approx(2.0)


def test_a_log_file_gets_a_line_now_and_then_and_the_last(tmp_path, open_reporter):
  clock, stream = Clock(), io.StringIO()
  reporter = open_reporter(
    tmp_path, total_steps=1000, batch_size=100, clock=clock, stream=stream, log_every_sec=50
  )
  for step in range(1, 1001):
    clock.now += 0.1
    reporter.progress(step, {"loss": 0.5, "lr": 3.0, "skipped": 0.0, "F_error": 0.25})
  first, middle, last = stream.getvalue().splitlines()
  assert first == "step 1/1000   0%  F error 0.25"
  pace = "F error 0.25  10 step/s  1,000 img/s"
  assert re.fullmatch(rf"step 50\d/1000  50%  ETA 0:00:50  {pace}", middle)
  assert last == f"step 1000/1000 100%  ETA 0:00:00  {pace}"


def test_a_terminal_has_one_line_that_is_rewritten(tmp_path, open_reporter, monkeypatch):
  monkeypatch.setenv("COLUMNS", "40")
  clock, stream = Clock(), Terminal()
  with open_reporter(tmp_path, clock=clock, stream=stream) as reporter:
    for step in range(1, 50):
      clock.now += 0.05
      reporter.progress(step, {"loss": np.nan, "skipped": 2.0})
  reporter.close()  # a second time
  text = stream.getvalue()
  assert text.count("\n") == 1 and text.endswith("\n")
  shown = [line.removesuffix("\x1b[K") for line in text[:-1].split("\r")[1:]]
  assert 15 < len(shown) <= 25 and max(map(len, shown)) <= 39  # ten a second, and it fits
  assert shown[0] == "step 1/100   1%  loss nan  skipped 2"


# --- the page ---


def run(workdir, make):
  reporter = make(workdir)
  for step in range(0, 101, 5):
    reporter.write(
      step,
      {
        "loss": np.nan if step == 50 else 1 / (1 + step),
        "tangent_norm": 2.0,
        "tangent_norm/t0.00-0.79": 1.0,
        "tangent_norm/t0.79-1.57": 3.0,
        "F_error": 0.1,
        "lr": step / 100,
        "images_per_sec": 123.0,
        "fd_1step": 5.0,
        "fd_floor": 1.0,
        "odd<name": 1.0,
      },
    )
    reporter.images(step, "digits", np.full((4, 8, 8, 1), step / 100))
  return reporter


def test_the_page_refers_to_nothing_outside_itself(tmp_path, open_reporter):
  run(tmp_path, open_reporter)
  page = write_report(tmp_path)
  assert not re.search(r"https?:|<script|<link|@import|javascript:| on\w+=", page)
  sources = re.findall(r'\b(?:src|href|url)[=(]["\']?([^"\'>]{0,22})', page)
  assert sources and set(sources) == {"data:image/png;base64,"}
  assert "default-src 'none'" in page
  assert not list(tmp_path.glob("*.partial"))


def test_the_page_has_each_curve_with_its_ranges_of_t(tmp_path, open_reporter):
  run(tmp_path, open_reporter)
  page = write_report(tmp_path)
  curves = re.findall(r'd="(M[^"]+)"><title>([^<]*)</title>', page)
  assert {name for _, name in curves} == {
    *("loss", "tangent_norm", "t 0.00–0.79", "t 0.79–1.57", "F_error", "lr", "images_per_sec"),
    *("fd_1step", "fd_floor", "odd&lt;name"),
  }
  charts = re.findall(r"<h3>([^<]*)</h3><span class=\"key\">", page)
  assert charts[:6] == [
    *("Fréchet distance", "Tangent norm", "Tangent norm by time t"),
    *("F error", "Loss", "Learning rate"),
  ]
  paths = {name: path for path, name in curves}
  assert paths["loss"].count("M") == 2 and "1 not finite" in page  # a gap where it was NaN
  points = [tuple(map(float, p.split())) for p in re.split("h0L?|L", paths["lr"][1:]) if p]
  x, y = np.array(points).T
  assert len(x) == 21 and x[0] < x[-1]
  np.testing.assert_allclose(np.diff(x), (x[-1] - x[0]) / 20, atol=0.11)  # pixels, one decimal
  np.testing.assert_allclose(np.diff(y), (y[-1] - y[0]) / 20, atol=0.11)  # a straight line, up
  assert y[-1] < y[0]


def test_the_page_holds_the_pictures_byte_for_byte_and_spreads_long_runs(tmp_path, open_reporter):
  run(tmp_path, open_reporter)
  page = write_report(tmp_path)
  shown = re.findall(r'alt="digits, step (\d+)" src="data:image/png;base64,([^"]+)"', page)
  for step, data in shown:
    path = tmp_path / "samples" / f"digits_{int(step):08d}.png"
    assert base64.b64decode(data) == path.read_bytes()
  assert len(shown) == 13  # of 21: twelve spread evenly, and the last
  assert int(shown[0][0]) == 100  # the last is first, and large
  past = [int(step) for step, _ in shown[1:]]
  assert past[0] == 0 and set(np.diff(past)) == {5, 10}


def test_the_page_leaves_out_pictures_of_steps_that_a_resume_took_back(tmp_path, open_reporter):
  run(tmp_path, open_reporter)
  open_reporter(tmp_path, start_step=40).write(41, {"loss": 1.0})
  shown = re.findall(r'alt="digits, step (\d+)"', write_report(tmp_path))
  assert sorted(map(int, shown)) == list(range(0, 41, 5))
  assert (tmp_path / "samples" / "digits_00000100.png").exists()


def test_the_page_shows_pictures_of_a_step_that_has_no_metrics(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  reporter.write(19, {"loss": 1.0})
  reporter.images(20, "digits", np.zeros((1, 8, 8, 1)))
  assert 'alt="digits, step 20"' in write_report(tmp_path)
  assert list(writer.read_metrics(tmp_path)) == ["loss"]


def test_all_texts_of_the_page_are_escaped(tmp_path, open_reporter):
  evil = "<b onclick='x'>&\"</b>"
  open_reporter(tmp_path).write(1, {evil: 1.0, f"family/{evil}": 1.0})
  page = write_report(
    tmp_path,
    title=evil,
    config={evil: {evil: evil}},
    scores=[{evil: evil}],
    told=page_of_run.Told(
      notes=[evil, "second"],
      terms=[(evil, evil)],
      scores={"family/": evil},
      fixed={f"family/{evil}s": 1.0},
    ),
  )
  assert "<b onclick" not in page and '&"</b>' not in page
  escaped = "&lt;b onclick=&#x27;x&#x27;&gt;&amp;&quot;&lt;/b&gt;"
  assert f"<title>{escaped}</title>" in page and f"<h1>{escaped}</h1>" in page
  assert f"<td>{escaped}.{escaped}</td><td>{escaped}</td>" in page
  assert f"<p>{escaped}</p><p>second</p>" in page
  assert f"<dt>{escaped}</dt><dd>{escaped}</dd>" in page and f'"soft">{escaped}</p>' in page


def test_the_page_shows_scores_and_the_whole_config(tmp_path):
  page = write_report(
    tmp_path,
    config={"seed": 0, "net": {"name": "mlp", "width": 64, "extra": {}}, "b2": 0.99},
    scores=[
      {"sampler": "1 step", "NFE": 1, "distance": 0.123456},
      {"sampler": "2 steps", "NFE": 2, "ratio": np.float32(np.nan)},
    ],
    told=page_of_run.Told(notes=["One note."]),
  )
  head, *rows = re.findall(r"<tr>(.*?)</tr>", page)[:3]
  assert re.findall(r">([^<]+)</th>", head) == ["sampler", "NFE", "distance", "ratio"]
  assert re.findall(r">([^<]+)</td>", rows[0]) == ["1 step", "1", "0.1235", "–"]
  assert re.findall(r">([^<]+)</td>", rows[1]) == ["2 steps", "2", "–", "nan"]
  pairs = dict(re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", page))
  assert {k: pairs[k] for k in ("seed", "net.name", "net.width", "net.extra", "b2")} == {
    **{"seed": "0", "net.name": "mlp", "net.width": "64", "net.extra": "{}", "b2": "0.99"}
  }
  assert pairs["numpy"] == np.__version__ and "<p>One note.</p>" in page


def test_training_images_are_beside_the_newest_samples(tmp_path, open_reporter):
  reporter = run(tmp_path, open_reporter)
  reporter.real_images(np.full((4, 8, 8, 1), 0.5))
  page = write_report(tmp_path)
  real = (tmp_path / "samples" / "real.png").read_bytes()
  (shown,) = re.findall(r'<div class="card pictures">(.*?)</div>', page)
  pictures = re.findall(r'alt="([^"]+)" src="data:image/png;base64,([^"]+)"', shown)
  assert [name for name, _ in pictures] == ["training images", "digits, step 100"]
  assert base64.b64decode(pictures[0][1]) == real


def test_the_page_says_what_each_curve_is_and_that_a_consistency_loss_may_rise(
  tmp_path, open_reporter
):
  run(tmp_path, open_reporter)
  told = page_of_run.Told(
    kind=sentences.CONSISTENCY, scores={"fd": "What it is."}, fixed={"fd/teacher: heun": 0.5}
  )
  page = write_report(tmp_path, told=told)
  said = dict(re.findall(r"<h3>([^<]*)</h3>.*?</div>(?:<p class=\"soft\">([^<]*)</p>)?<svg", page))
  assert said["Loss"].startswith("Not a measure of progress. It may rise")
  assert said["Fréchet distance"] == "What it is."
  assert all(said[name] for name in said if name not in ("fd", "odd&lt;name")), said
  assert "not by its loss" in page
  (level,) = re.findall(r'd="([^"]+)"><title>teacher: heun<', page)
  heights = set(re.findall(r"[ML][\d.]+ ([\d.]+)", level))
  assert len(heights) == 1 and 'dasharray:5 4" d="' + level in page
  other = write_report(tmp_path, told=page_of_run.Told(kind=sentences.DIFFUSION))
  assert "may rise" not in other and "Falls fast" in other


def test_the_page_shows_where_the_time_went(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  shares = {"goodput/steps": 0.75, "goodput/compiling": 0.25, "goodput/away": 0.0}
  reporter.write(1, {**shares, "wall_sec": 4000.0})
  page = write_report(tmp_path)
  rows = re.findall(
    r"<td>([^<]+)</td><td class=\"num\">([^<]+)</td><td class=\"num\">([^<]+)", page
  )
  assert rows == [
    ("training steps that were kept", "0:50:00", "75.0%"),
    ("compiling the step", "0:16:40", "25.0%"),
  ]
  assert re.findall(r'<i style="width:([\d.]+)%', page) == ["75.00", "25.00"]
  assert "1:06:40 since the start" in page
  assert set(sentences.PARTS) == set(goodput.KINDS) == set(page_of_run._PART_COLOURS)


def test_faults_are_tiles_only_where_there_are_any(tmp_path, open_reporter):
  reporter = open_reporter(tmp_path)
  reporter.write(1, {"skipped": 0.0, "rolled_back": 2.0})
  page = write_report(tmp_path)
  assert "Roll backs</span><b>2</b>" in page and "Skipped steps</span>" not in page


def test_the_page_opens_with_an_empty_history(tmp_path):
  page = write_report(tmp_path / "nothing")
  assert "No metrics have been recorded yet." in page and "<svg" not in page


@pytest.mark.parametrize("values", [[0.5], [np.nan], [0.0, 0.0], [np.inf, 1.0], [3.0, 3.0, 3.0]])
def test_the_page_opens_with_a_short_or_constant_history(tmp_path, open_reporter, values):
  reporter = open_reporter(tmp_path)
  for step, value in enumerate(values, 1):
    reporter.write(step, {"loss": value})
  page = write_report(tmp_path)
  (path,) = re.findall(r'd="([^"]*)"><title>loss', page)
  assert len(re.findall("[ML]", path)) == np.isfinite(values).sum()
  assert not re.search(r"nan|inf", "".join(re.findall(r"<svg.*?</svg>", page)))
  heights = {float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)}
  assert heights <= {107.0}  # one value is in the middle of its axis


def test_a_long_curve_is_drawn_as_means_with_its_range_and_a_log_axis_has_decades(
  tmp_path, open_reporter
):
  reporter = open_reporter(tmp_path)
  for step in range(1500):
    reporter.write(step, {"grad_norm": 10.0 ** (step // 500) * (1 + step % 5)})
  page = write_report(tmp_path)
  (path,) = re.findall(r'd="(M[^"]*)"><title>grad_norm', page)
  assert len(re.findall("[ML]", path)) == 300 and "log scale" in page and "<polygon" in page
  labels = {
    text: float(y) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">([^<]*)</text>', page)
  }
  assert labels["1"] - labels["10"] == pytest.approx(labels["10"] - labels["100"], abs=0.11)
  drawn = [float(p.split()[1].removesuffix("h0")) for p in re.split("[ML]", path)[1:]]
  mean = labels["1"] - np.log10(3) * (labels["1"] - labels["10"])  # of 1, 2, 3, 4, 5
  assert drawn[0] == pytest.approx(mean - 4, abs=0.11)  # labels stand 4 pixels below their line


def test_a_full_disk_is_named_and_not_hidden_by_what_follows(tmp_path):
  with pytest.raises(
    OSError, match="metrics.jsonl could not be written: No space left .* start the sa"
  ):
    with writer.Reporter(tmp_path, total_steps=2, batch_size=1) as reporter:
      reporter._history._file.close()
      reporter._history._file = open(
        "/dev/full", "a"
      )  # a device that is full, and fails at close, too
      reporter.write(1, {"loss": 1.0})


def test_where_writing_fails_the_old_file_stays_and_nothing_of_the_new(tmp_path):
  path = tmp_path / "scores.json"
  path.write_text("old")
  with pytest.raises(RuntimeError, match="in the middle"), replacing(path) as file:
    file.write(b"new")
    raise RuntimeError("in the middle")
  assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["scores.json"]
