"""Pictures by number: the same for a number whatever else is drawn; a folder that goes on."""

import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from cmjax import experiment
from cmjax.base import sharding
from cmjax.metrics import rounding
from cmjax.program import drawing, numbered, sample, stored_runs
from helpers import object_stores, processes, tiny

MADE_OF = {"weights": {"step": 3}, "noise": {"seed": 0}}


def images_of(numbers, channels=1):
  """[n, 4, 4, c]: each picture is a function of its number alone; every third is too bright."""
  rows = [np.random.default_rng(n).uniform(-1, 1, (4, 4, channels)) for n in numbers.tolist()]
  return np.stack(rows).astype(np.float32) * np.where(numbers % 3, 1, 1.5)[:, None, None, None]


class Draw:
  """Draws `images_of`, notes what it was asked for, and may be interrupted at a call."""

  def __init__(self, stops_at=None, channels=1):
    self.asked, self._stops_at, self._channels = [], stops_at, channels

  def __call__(self, numbers):
    if len(self.asked) == self._stops_at:
      raise KeyboardInterrupt
    self.asked.append(numbers)
    return numbers, images_of(numbers, self._channels)


def write(folder, text, draw=None, made_of=MADE_OF, at_once=8):
  mesh = sharding.make_mesh()
  return numbered.write(
    *(draw or Draw(), lambda samples: samples, epath.Path(folder), numbered.seeds(text)),
    mesh=mesh, made_of=made_of, what="one_step", at_once=at_once,
  )  # fmt: skip


def pixels(folder):
  return {path.name: np.asarray(Image.open(path)) for path in pathlib.Path(folder).glob("*.png")}


@pytest.mark.parametrize(
  ("text", "found"), [("5", [5]), ("0-3", [0, 1, 2, 3]), (" 8, 2-3 ,2", [2, 3, 8])]
)
def test_seeds_are_numbers_and_ranges(text, found):
  assert numbered.seeds(text).tolist() == found


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("", "must be numbers and ranges, as in 0-49999"),
    ("-3", "must be numbers and ranges"),
    ("a", "must be numbers and ranges"),
    ("1;2", "must be numbers and ranges"),
    ("9-3", "each rising, up to 1,000,000,000"),
    ("0-1000000001", "each rising, up to 1,000,000,000"),
    ("0-99999999", "at most 10,000,000 in one call, got 100,000,000"),
  ],
)
def test_other_seeds_are_refused_in_one_line(text, told):
  with pytest.raises(ValueError, match=f"^--seeds={text!r} .*{told}") as refused:
    numbered.seeds(text)
  assert "\n" not in str(refused.value)


@pytest.mark.devices
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_a_device_draws_whole_blocks_of_numbers_and_each_that_is_wanted_once(devices):
  mesh = sharding.make_mesh(devices=sharding.cpu_devices(devices))
  wanted, draw = numbered.seeds("3,70-90,1000"), Draw()
  found = [ids for ids, _ in numbered.in_blocks(draw, wanted, mesh, 8)]
  for asked in draw.asked:
    assert len(asked) == 8 * devices
    for block in asked.reshape(devices, 8):
      assert block.tolist() == list(range(block[0], block[0] + 8)) and block[0] % 8 == 0
  drawn = np.concatenate(found)
  assert all(np.sum(drawn == number) == 1 for number in wanted)
  blocks = len({number // 8 for number in wanted.tolist()})
  assert len(draw.asked) == -(-blocks // devices)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_the_names_and_pixels_of_their_numbers(tmp_path, channels):
  said = write(tmp_path / "a", "5-20", Draw(channels=channels))
  numbers = np.arange(5, 21)
  expected = rounding.to_uint8(images_of(numbers, channels), "round")
  found = pixels(tmp_path / "a")
  assert sorted(found) == [f"{n:06d}.png" for n in numbers]
  for number, picture in zip(numbers, expected, strict=True):
    np.testing.assert_array_equal(found[f"{number:06d}.png"], np.squeeze(picture, -1)
                                  if channels == 1 else picture)  # fmt: skip
  assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".png", ".json"}
  outside = int(np.sum(np.abs(images_of(numbers, channels)) > 1 + 0.5 / 127.5))
  assert outside and f"{outside:,} of {16 * 16 * channels:,} values" in said
  assert said.startswith("one_step: 16 pictures drawn, 0 were there.")


def test_an_interrupted_folder_goes_on_and_what_is_whole_stays(tmp_path):
  write(tmp_path / "whole", "0-39")
  folder = tmp_path / "a"
  with pytest.raises(KeyboardInterrupt):
    write(folder, "0-39", Draw(stops_at=2))
  assert len(pixels(folder)) == 16
  (folder / "000003.png").write_bytes((folder / "000003.png").read_bytes()[:-5])  # cut off
  (folder / "000005.png").write_bytes(b"")
  (folder / "000006.png").unlink()
  (folder / "000007.png.0123456789abcdef.partial").write_bytes(b"half")  # of a killed writer
  kept = {path: path.stat().st_mtime_ns for path in folder.glob("00000[0124789].png")}
  draw = Draw()
  said = write(folder, "0-39", draw)
  assert said.startswith("one_step: 27 pictures drawn, 13 were there.")
  assert [asked[0] for asked in draw.asked] == [0, 16, 24, 32]
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  a, b = pixels(folder), pixels(tmp_path / "whole")
  assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
  assert not list(folder.glob("*.partial"))
  last = Draw()
  assert write(folder, "0-39", last) == "one_step: 0 pictures drawn, 40 were there."
  assert not last.asked


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(tmp_path):
  write(tmp_path / "a", "0-7")
  before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir())
  with pytest.raises(ValueError, match=r"something else: noise.seed \(0 there, 1 now\). Take ano"):
    write(tmp_path / "a", "0-7", made_of=MADE_OF | {"noise": {"seed": 1}})
  record = tmp_path / "a" / numbered.RECORD
  text = record.read_text()
  record.write_text(text.replace('"step": 3', '"step": 4'))
  with pytest.raises(ValueError, match="samples.json is damaged .it is not what was written"):
    write(tmp_path / "a", "0-7")
  record.write_text(text)
  assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir()) == before
  (tmp_path / "photos").mkdir()
  Image.new("L", (4, 4)).save(tmp_path / "photos" / "000000.png")
  with pytest.raises(ValueError, match=r"has pictures already, and no samples.json .*--out"):
    write(tmp_path / "photos", "0-7")
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="^Cannot write pictures to .*file: "):
    write(tmp_path / "file", "0-7")


# --- of networks ----------------------------------------------------------------------------------


@pytest.fixture(name="stored")
def _stored(monkeypatch):
  """The experiment of a tiny network, whose weights are found wherever a run is asked for them."""
  given = experiment.parse(tiny.digits())
  params = jax.jit(given.network.init)(jax.random.key(0))
  params = jax.tree.map(
    lambda a: a + 0.4 * jax.random.normal(jax.random.key(a.size), a.shape), params
  )
  trained = stored_runs.Trained(experiment.describe(given.record), {"main": params}, 7)
  monkeypatch.setattr(stored_runs, "load_network", lambda *_, **__: trained)
  return given


@pytest.mark.devices
def test_a_number_is_one_picture_whatever_else_is_drawn_on_however_many_devices(
  stored, tmp_path, monkeypatch
):
  def drawn(text, devices, folder):
    mesh = sharding.make_mesh(devices=sharding.cpu_devices(devices))
    monkeypatch.setattr(experiment, "make_mesh", lambda run: mesh)
    options = dict(seeds=numbered.seeds(text), name="two_steps", ema="main", batch_size=8)
    (path,) = sample.sample(stored, tmp_path, **options, out=tmp_path / folder)
    assert path == epath.Path(tmp_path / folder)
    return {name: picture.tobytes() for name, picture in pixels(path).items()}

  every = drawn("0-40", 1, "a")
  assert len(set(every.values())) == 41
  for text, devices in (("0-40", 4), ("7,9-12,40", 1), ("3", 4)):
    some = drawn(text, devices, f"{text}_{devices}")
    assert len(some) == len(numbered.seeds(text)) and some.items() <= every.items()


def test_an_npz_has_8_bits_the_classes_and_the_pictures_of_the_same_numbers(
  stored, tmp_path, caplog
):
  caplog.set_level(logging.INFO, logger="cmjax")
  (tmp_path / "run").mkdir()
  draw = lambda **options: sample.sample(
    stored, tmp_path / "run", name="one_step", ema="main", **options
  )
  picture, arrays = draw(batch_size=8)
  assert picture.name == "one_step_main_step7_seed0.png"
  with np.load(arrays) as found:
    images, labels = found["arr_0"], found["arr_1"]
    assert sorted(found.files) == ["arr_0", "arr_1"]
  assert images.shape == (70, 8, 8, 1) and images.dtype == np.uint8  # whole rows of ten classes
  assert labels.tolist() == [i % 10 for i in range(70)]
  assert sum("were clipped" in message for message in caplog.messages) == 1
  (folder,) = draw(seeds=numbered.seeds("0-69"), batch_size=8)
  assert folder == epath.Path(tmp_path / "run" / "samples" / "one_step_main_step7_seed0")
  for name, picture in pixels(folder).items():
    np.testing.assert_array_equal(picture, images[int(name[:6]), ..., 0])
  assert len(draw(num_samples=3)) == 2


def test_what_cannot_be_drawn_says_why(stored, tmp_path):
  both = dict(num_samples=4, seeds=np.arange(4))
  with pytest.raises(ValueError, match="^--num_samples=4 and --seeds are both given. .* drop one"):
    sample.sample(stored, tmp_path, **both)
  with pytest.raises(ValueError, match="^--batch_size=0 must be at least 1"):
    sample.sample(stored, tmp_path, batch_size=0)


def test_points_have_no_pictures(tmp_path, monkeypatch):
  given = experiment.parse(tiny.config())
  params = given.network.init(jax.random.key(0))
  trained = stored_runs.Trained(experiment.describe(given.record), {"main": params}, 7)
  monkeypatch.setattr(stored_runs, "load_network", lambda *_, **__: trained)
  with pytest.raises(ValueError, match=r"of the shape \[2\]. --num_samples writes them as numbers"):
    sample.sample(given, tmp_path, seeds=np.arange(4), ema="main")
  assert not list(tmp_path.iterdir())


def test_a_default_fills_the_rows_of_its_classes():
  assert list(map(drawing._in_whole_rows, (0, 1, 3, 10, 20, 21, 1000))) == [
    64, 64, 66, 70, 80, 64, 64
  ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.devices
def test_processes_share_the_work_and_write_what_one_does(tmp_path):
  workdir = tmp_path / "run"
  tiny.train(tiny.digits(total_steps=2), workdir)
  arguments = ("sample", f"--workdir={workdir}", "--seeds=0-99", "--sampler=two_steps")
  arguments += ("--batch_size=8",)
  out, program = f"--out={tmp_path / 'two'}", ("-m", "cmjax")
  with processes.Processes(tmp_path / "logs", 2, *arguments, out, program=program) as both:
    assert both.exit_codes() == [0, 0], both.said()
  said = both.said()
  assert said.count("100 pictures drawn, 0 were there") == 1, said
  own = experiment.parse(stored_runs.read_record(workdir))
  options = dict(seeds=np.arange(100), name="two_steps", out=tmp_path / "one", batch_size=8)
  sample.sample(own, workdir, **options)
  one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
  assert len(one) == 100 and one.keys() == two.keys()
  for name, picture in one.items():
    np.testing.assert_array_equal(picture, two[name])
  records = [json.loads((tmp_path / n / numbered.RECORD).read_text()) for n in ("one", "two")]
  assert records[0] == records[1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["gs", "s3"])
def test_a_folder_in_a_bucket_goes_on_as_one_on_a_disk(tmp_path, where):
  write(tmp_path / "disk", "0-39")
  with object_stores.served(where) as server:
    folder = epath.Path(f"{server.url}/samples/a")
    drawing.paths.place(str(folder))
    with pytest.raises(KeyboardInterrupt):
      write(folder, "0-39", Draw(stops_at=2))
    said = write(folder, "0-39")
    assert said.startswith("one_step: 24 pictures drawn, 16 were there.")
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}
  expected = {path.name: path.read_bytes() for path in (tmp_path / "disk").glob("*.png")}
  assert found == expected and len(found) == 40
