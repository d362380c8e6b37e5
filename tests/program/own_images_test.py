"""`cmjax start`: from a folder of pictures to pages that train; what it refuses; what it says."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmjax import experiment, pages
from cmjax.commands import own_images as command
from cmjax.data import records, sources
from cmjax.metrics import wasserstein
from cmjax.program import own_images, preflight
from helpers import in_process, photographs, tiny


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """130 pictures of many kinds and sizes, two of them broken."""
  folder = tmp_path_factory.mktemp("pictures") / "photos"
  photographs.write(folder, 130, sizes=(30, 60), broken=2)
  return folder


@pytest.fixture(scope="module")
def started(photos, tmp_path_factory):
  """The folder that `cmjax start` makes of them."""
  out = tmp_path_factory.mktemp("runs") / "my photos"
  arguments = [str(photos), "--out", str(out), "--no_timing", "--workers=0"]
  assert command.main(arguments) == 0
  return out


def load(path):
  config = pages.load(path).unlock()
  config.mesh = dict(data=1, fsdp=1)
  return config


def test_the_pictures_are_squares_and_a_tenth_is_held_out(started):
  train, test = (records.records(started / "data", split=split) for split in sources.SPLITS)
  # 132 files: every tenth is held out, and the broken two are left out.
  assert len(train) + len(test) == 130 and len(test) == 13
  assert train.shape == test.shape == (32, 32, 3) and train.num_classes == 0


def test_the_pages_have_what_was_measured_and_follow_the_number_of_pictures(started):
  teacher, student = (load(started / name) for name in own_images.FILES)
  num = len(records.records(started / "data"))
  images = sources.as_array(records.records(started / "data"))[0] / 127.5 - 1
  for config, like in ((teacher, "own_images_teacher"), (student, "own_images_scd")):
    assert config.sigma_data == pytest.approx(images.std(), abs=0.0006)
    shown = pages.differences(config, pages.load(f"{like}:32:{num}")).splitlines()
    changed = {row.split()[0] for row in shown}
    assert changed <= {
      "data.records.path", "sigma_data", "loss.P_mean", "loss.P_std", "mesh.data",
      "teacher.workdir", "init_from.workdir",
    }  # fmt: skip
    e = experiment.parse(config)
    assert experiment.too_long(e, num) == [] and experiment.opened(e).shape == (32, 32, 3)
  assert teacher.loss.P_mean != -1.2 and student.loss.P_mean != -1.0
  assert student.teacher.workdir == student.init_from.workdir == f"{started}/teacher"
  assert student.total_steps * 2 == teacher.total_steps


def test_a_student_without_its_teacher_is_told_the_teachers_page(started, tmp_path):
  with pytest.raises(ValueError) as raised:
    tiny.train(load(started / "student.py"), tmp_path / "student")
  words = f"cmjax train --config={started}/teacher.py --workdir={started}/teacher;"
  assert words in str(raised.value)


def test_it_says_what_to_run_and_shows_the_pages(photos, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(own_images, "hours", lambda found: own_images.Hours(4_000.0, 300_000.0))
  out = tmp_path / "run"
  code, said, _ = in_process.answer(
    capsys, lambda: in_process.verb("start", str(photos), f"--out={out}", "--workers=0")
  )
  assert code == 0
  for name in own_images.FILES:
    assert (out / name).read_text() in said
  assert (
    f"  cmjax train --config={out}/teacher.py --workdir={out}/teacher    # about 67 minutes" in said
  )
  assert (
    f"  cmjax train --config={out}/student.py --workdir={out}/student    # about 3.5 days" in said
  )
  assert "On a GPU it is hours" in said and f"cmjax sample --workdir={out}/student" in said


def test_a_stopped_start_goes_on_and_a_finished_one_is_not_written_over(photos, tmp_path):
  arguments = [str(photos), f"--out={tmp_path / 'run'}", "--no_timing", "--workers=0"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(own_images, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command.main(arguments) == 130
  shard = next((tmp_path / "run" / "data" / "train").glob("*.array_record"))
  written = shard.stat().st_mtime_ns
  assert command.main(arguments) == 0 and shard.stat().st_mtime_ns == written
  page = (tmp_path / "run" / "teacher.py").read_text()
  assert command.main(arguments) == 1
  assert (tmp_path / "run" / "teacher.py").read_text() == page


def refused(capsys, *arguments):
  """The one line that is said of a call."""
  code, _, err = in_process.answer(
    capsys, lambda: command.main([*map(str, arguments), "--workers=0"])
  )
  lines = [line for line in err.splitlines() if line.startswith("cmjax: ")]
  assert code == 1 and len(lines) == 1
  return lines[0]


def test_what_cannot_be_is_one_line(photos, started, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "words.txt").write_text("no picture")
  photographs.write(tmp_path / "few", 20)
  out = tmp_path / "out"
  for source, to, words in (
    (tmp_path / "none", out, "There is nothing at"),
    (tmp_path / "words.txt", out, "is one file. Give a folder or a .zip"),
    (tmp_path / "empty", out, "no pictures"),
    (
      tmp_path / "few",
      out,
      "has 20 pictures: of so few a network learns copies. Give at",
    ),
    (photos, started, "has student.py, teacher.py in it already: nothing is written over"),
    (photos, photos / "runs", "lies among the pictures"),
    (photos, tmp_path / "words.txt", "is a file. Take another --out"),
  ):
    assert words in refused(capsys, source, "--out", to), words
  assert "'x' is no colour" in refused(capsys, photos, "--out", out, "--background=x")
  assert not out.exists()
  assert "broken_0.jpg" in refused(capsys, photos, "--out", out, "--max_bad=0")


def test_pictures_are_looked_at_for_size_and_channels(tmp_path, photos):
  for name, size, mode, expected in (
    ("large", (90, 70), "RGB", (64, 3)),
    ("small", (90, 50), "RGB", (32, 3)),
    ("gray", (64, 64), "L", (64, 1)),
  ):
    (tmp_path / name).mkdir()
    for i in range(3):
      Image.new(mode, size, 50 * i).save(tmp_path / name / f"{i}.png")
    found = own_images.originals.find(str(tmp_path / name), labels="none")
    assert own_images._look(found, ()) == expected


def test_a_zip_of_pictures_does_as_well(photos, tmp_path):
  with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
    for path in sorted(photos.rglob("*.jpg")):
      archive.write(path, path.relative_to(photos))
    for path in sorted(photos.rglob("*.png")):
      archive.write(path, path.relative_to(photos))
  arguments = [str(tmp_path / "photos.zip"), f"--out={tmp_path / 'run'}", "--no_timing"]
  assert command.main([*arguments, "--workers=0"]) == 0
  assert load(tmp_path / "run" / "teacher.py").net.in_channels == 3


def test_hours_are_those_of_a_timed_step_and_of_what_the_student_computes(started, monkeypatch):
  found = own_images.measure(started, started)
  timed = []

  def time_step(exp, mesh):
    timed.append(exp.run.batch_size)
    return preflight.StepTime(0.5, 100.0)

  monkeypatch.setattr(preflight, "time_step", time_step)
  monkeypatch.setattr(preflight, "step_flops", lambda exp, mesh: 300.0)
  teacher, student = own_images.hours(found)
  steps = load(started / "teacher.py").total_steps
  # A batch of 64 takes 64 / timed times as long as the one that was timed.
  assert teacher == pytest.approx(steps * 64 / timed[0] * 0.5)
  assert student == pytest.approx(teacher * 3 / 2)


def test_a_step_is_timed_and_its_flops_are_those_of_the_trace():
  exp = tiny.experiment_of(**{"mesh.data": 1})
  mesh = experiment.make_mesh(exp.run)
  step = preflight.time_step(exp, mesh)
  assert 0 < step.seconds < 5 and step.flops == preflight.step_flops(exp, mesh) > 0


# Of a page for days on a CPU, what trains in a minute or two.
SHORT = """--config.net.channels=8 --config.net.channel_mult=1,2,4 --config.net.num_blocks=1
  --config.net.attn_resolutions=() --config.net.dropout=0 --config.batch_size=16
  --config.mesh.data=1 --config.log_every_steps=50 --config.checkpoint.every_steps=1000
  --config.evals.grid.num_samples=16 --config.evals.swd.num_samples=256
  --config.ema.main.rampup_ratio=0.1""".split()
TEACHER = """--config.total_steps=200 --config.optim.lr=3e-3 --config.optim.schedule.warmup_steps=20
  --config.samplers.heun.num_steps=8""".split()
STUDENT = """--config.total_steps=80 --config.optim.lr=5e-4 --config.loss.warmup_steps=16
  --config.optim.schedule.warmup_steps=8 --config.optim.schedule.decay_steps=30""".split()


@pytest.mark.slow
def test_2900_pictures_become_samples_that_are_better_than_the_mean_image(tmp_path):
  photographs.write(tmp_path / "photos", 2_900, broken=10)
  out = tmp_path / "run"
  words = [str(tmp_path / "photos"), f"--out={out}", "--no_timing", "--resolution=32"]
  assert command.main(words) == 0
  for name, flags in (("teacher", TEACHER), ("student", STUDENT)):
    run = [f"--config={out}/{name}.py", f"--workdir={out}/{name}", *SHORT, *flags]
    assert not in_process.verb("train", *run)
  train, test = (records.records(out / "data", split=split) for split in sources.SPLITS)
  assert len(train) + len(test) == 2_900
  flat = lambda images: images.reshape(len(images), -1) / 127.5 - 1
  every, some = (flat(sources.as_array(train, limit=limit)[0]) for limit in (None, 256))
  of_mean = wasserstein.sliced(np.tile(every.mean(0), (256, 1)), some)
  teacher, student = (
    json.loads((out / name / "scores.json").read_text()) for name in ("teacher", "student")
  )
  # The same score of 256 times the mean image, and of held-out pictures.
  assert 0.3 < of_mean < 0.5 and teacher["swd/floor"] < 0.1
  assert teacher["swd/heun/main"] < of_mean / 2
  assert student["swd/two_step/main"] < of_mean / 1.5
  for name, sampler in (("teacher", "heun"), ("student", "two_step")):
    report = (out / name / "report.html").read_text()
    assert "swd" in report and "data:image/png" in report
    assert len(list((out / name / "samples").glob(f"{sampler}_main_*.png"))) >= 2
