"""From any collection of images to shards: the same pixels and bytes, and errors that say where."""

import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cmjax.commands import prepare
from cmjax.data import manifest, records, sources
from cmjax.data.prepare import crops, originals, writing

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 6, 3), np.uint8)
LABELS = np.arange(12) % 3


def png(pixels, **options):
  file = io.BytesIO()
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  image.save(file, **{"format": "png"} | options)
  return file.getvalue()


def write_folder(path, pixels=PIXELS, labels=LABELS):
  """Class subfolders c0, c1, ...; returns the images in the order of the names."""
  for i, (x, label) in enumerate(zip(pixels, labels, strict=True)):
    (path / f"c{label}").mkdir(parents=True, exist_ok=True)
    (path / f"c{label}" / f"{i:03d}.png").write_bytes(png(x))
  return pixels[np.argsort(labels, kind="stable")], np.sort(labels)


def run(source, out, *options, code=0):
  assert prepare.main([str(source), "--out", str(out), "--workers=0", *options]) == code


def read(out, split="train"):
  return sources.as_array(records.records(out, split=split))


def contents(path):
  return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# --- sources ---


def edm_zip(path, root=""):
  """As EDM writes them: folders of a thousand, labels in dataset.json."""
  names = [f"{i // 5:05d}/img{i:08d}.png" for i in range(12)]
  with zipfile.ZipFile(path, "w") as file:
    for name, x in zip(names, PIXELS, strict=True):
      file.writestr(root + name, png(x, compress_level=0))
    labels = [[name, int(label)] for name, label in zip(names, LABELS, strict=True)]
    file.writestr(f"{root}dataset.json", json.dumps({"labels": labels}))


def parquet(folder, column="label"):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  features = {column: {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
  schema = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (column, pa.int64())],
    metadata={"huggingface": json.dumps({"info": {"features": features}})},
  )
  folder.mkdir()
  for part in range(2):
    rows = range(part * 6, part * 6 + 6)
    images = [{"bytes": png(PIXELS[i]), "path": f"{i}.png"} for i in rows]
    table = pa.table([images, LABELS[list(rows)].tolist()], schema=schema)
    pq.write_table(table, folder / f"train-0000{part}-of-00002.parquet", row_group_size=4)
  pq.write_table(table.slice(0, 1), folder / "test-00000-of-00001.parquet")


@pytest.mark.parametrize("kind", ["zip", "zip in a folder", "npz", "parquet", "folder of EDM's"])
def test_every_kind_of_source_gives_its_images_in_order_with_their_labels(tmp_path, kind):
  source = tmp_path / ("a.npz" if kind == "npz" else "a.zip" if "zip" in kind else "a")
  if "zip" in kind:
    edm_zip(source, "mine/" if "folder" in kind else "")
  elif kind == "npz":
    np.savez(source, train_images=PIXELS, train_labels=LABELS)
  elif kind == "parquet":
    parquet(source)
  else:
    edm_zip(tmp_path / "a.zip")
    zipfile.ZipFile(tmp_path / "a.zip").extractall(source)
  sent = pickle.loads(pickle.dumps(originals.find(source)))  # as to a process
  np.testing.assert_array_equal(np.asarray(sent.picture(7, ())[0]), PIXELS[7])
  run(source, tmp_path / "out")
  images, labels = read(tmp_path / "out")
  np.testing.assert_array_equal(images, PIXELS)
  np.testing.assert_array_equal(labels, LABELS)
  _, found = manifest.read(tmp_path / "out", "train")
  assert found.class_names == (("ant", "bee", "cat") if kind == "parquet" else ("0", "1", "2"))
  assert found.details["class_counts"] == [4, 4, 4]


def test_subfolders_are_classes_and_so_are_those_of_a_zip(tmp_path):
  images, labels = write_folder(tmp_path / "a")
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
    for path in sorted((tmp_path / "a").rglob("*.png")):
      file.write(path, path.relative_to(tmp_path))  # with the folder a/ around
  for source in ("a", "a.zip"):
    run(tmp_path / source, tmp_path / f"{source}.out", "--licence=mine")
    got, got_labels = read(tmp_path / f"{source}.out")
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(got_labels, labels)
    _, found = manifest.read(tmp_path / f"{source}.out", "train")
    assert found.class_names == ("c0", "c1", "c2") and found.details["made"]["licence"] == "mine"


def test_labels_come_from_json_of_numbers_or_names_or_are_left_out(tmp_path):
  images, labels = write_folder(tmp_path / "a")
  names = [p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.png")]
  table = {name: ["zebra", "ape"][i % 2] for i, name in enumerate(sorted(names))}
  (tmp_path / "labels.json").write_text(json.dumps(table))
  run(tmp_path / "a", tmp_path / "named", f"--labels={tmp_path / 'labels.json'}")
  np.testing.assert_array_equal(read(tmp_path / "named")[1], 1 - np.arange(12) % 2)
  assert manifest.read(tmp_path / "named", "train")[1].class_names == ("ape", "zebra")
  run(tmp_path / "a", tmp_path / "none", "--labels=none")
  assert read(tmp_path / "none")[1] is None
  np.testing.assert_array_equal(read(tmp_path / "none")[0], images)


def test_a_tfds_name_is_read_without_tensorflow_at_any_size(tmp_path):
  with tfds.testing.mock_data(num_examples=5):
    run("imagenet2012", tmp_path / "a", "--transform=center-crop-dhariwal", "--resolution=8")
    data = sources.tfds_of_any_size("imagenet2012")
    expected = [
      np.asarray(crops.center_crop_dhariwal(Image.fromarray(data[i]["image"]), 8)) for i in range(5)
    ]
    labels = [data[i]["label"] for i in range(5)]
  images, got = read(tmp_path / "a")
  np.testing.assert_array_equal(images, expected)
  np.testing.assert_array_equal(got, labels)
  assert manifest.read(tmp_path / "a", "train")[1].class_names[0] == "n01440764"


def test_gray_images_have_one_channel_and_are_repeated_among_coloured_ones(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "0.png").write_bytes(png(PIXELS[0, ..., 0]))
  run(tmp_path / "a", tmp_path / "gray")
  assert records.records(tmp_path / "gray").shape == (6, 6, 1)
  (tmp_path / "a" / "1.png").write_bytes(png(PIXELS[1]))
  run(tmp_path / "a", tmp_path / "both", "--channels=3")
  images, _ = read(tmp_path / "both")
  np.testing.assert_array_equal(images[0], np.repeat(PIXELS[0, ..., :1], 3, axis=-1))
  np.testing.assert_array_equal(images[1], PIXELS[1])
  assert manifest.read(tmp_path / "both", "train")[1].details["converted"] == {"gray": 1}


# --- transforms ---


def dhariwal(image, size):
  """ADM's preprocessing, step by step on arrays; only the resampling is Pillow's."""
  x = image
  while min(x.shape[:2]) >= 2 * size:
    small = Image.fromarray(x).resize((x.shape[1] // 2, x.shape[0] // 2), Image.Resampling.BOX)
    x = np.array(small)
  h, w = x.shape[:2]
  scale = size / min(h, w)
  new = (round(w * scale), round(h * scale))
  x = np.array(Image.fromarray(x).resize(new, Image.Resampling.BICUBIC))
  top, left = (x.shape[0] - size) // 2, (x.shape[1] - size) // 2
  return x[top : top + size, left : left + size]


SIZES = [(17, 31), (31, 17), (33, 33), (16, 50), (127, 65), (64, 64), (8, 9), (101, 259), (5, 7)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gray", [False, True])
def test_dhariwals_crop_equals_the_reference_on_odd_sizes(size, gray):
  x = RNG.integers(0, 256, size if gray else (*size, 3), np.uint8)
  for resolution in (8, 13):
    got = crops.apply(Image.fromarray(x), "center-crop-dhariwal", resolution, "bicubic")
    np.testing.assert_array_equal(np.asarray(got), dhariwal(x, resolution))


@pytest.mark.parametrize("size", SIZES)
def test_the_crop_of_edm_is_the_middle_square_resized(size):
  x = RNG.integers(0, 256, (*size, 3), np.uint8)
  (h, w), side = size, min(size)
  square = x[(h - side) // 2 :, (w - side) // 2 :][:side, :side]
  for name, filter in (("lanczos", Image.Resampling.LANCZOS), ("box", Image.Resampling.BOX)):
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(square)).resize((8, 8), filter))
    got = crops.apply(Image.fromarray(x), "center-crop", 8, name)
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("none", 8, None), "takes no resolution"),
    (("center-crop", None, None), "needs a resolution"),
    (("center-crop", 8, "cubic"), "Unknown filter 'cubic'. Choose from: nearest"),
    (("center-crop-dhariwal", 8, "lanczos"), "is defined with bicubic"),
    (("crop", 8, None), "Unknown transform 'crop'. Choose from: none, center-crop"),
  ],
)
def test_a_transform_that_cannot_be_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    crops.check(*arguments)


def test_images_of_many_sizes_become_squares_and_without_a_crop_are_refused(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  for i, size in enumerate(SIZES[:4]):
    (tmp_path / "a" / f"{i}.png").write_bytes(png(RNG.integers(0, 256, (*size, 3), np.uint8)))
  run(tmp_path / "a", tmp_path / "out", code=1)
  message = "1.png is 31x17 with 3 channels, but the first picture is 17x31 .*--transform"
  assert_error(capsys, message)
  run(tmp_path / "a", tmp_path / "out", "--transform=center-crop", "--resolution=8")
  assert read(tmp_path / "out")[0].shape == (4, 8, 8, 3)


def assert_error(capsys, message):
  err = capsys.readouterr().err
  assert re.search(message, err), err


# --- killed, started again, full ---

PROGRAM = """
import sys
from pathlib import Path
from cmjax.data.prepare import originals, writing
if __name__ == "__main__":
  source, out = map(Path, sys.argv[1:3])
  writing.prepare(originals.find(source), out, "train", writing.Recipe(),
                  num_workers=2, shard_bytes=1000)
"""


def start(tmp_path, source, out):
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  return subprocess.Popen([sys.executable, str(program), str(source), str(out)], env=environment())


def environment():
  return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def parent_of(pid):
  """The parent of a process that lives; None of one that has ended."""
  try:
    state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
  except OSError:
    return None
  return None if state == "Z" else int(parent)


def children(pid):
  return [
    int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and parent_of(p.name) == pid
  ]


def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path):
  pixels = RNG.integers(0, 256, (900, 6, 6, 3), np.uint8)
  pixels[777] = pixels[3]  # a duplicate, over the shards
  write_folder(tmp_path / "a", pixels, np.arange(900) % 3)
  prepare_here = lambda out: writing.prepare(
    originals.find(tmp_path / "a"), out, "train", writing.Recipe(), num_workers=0, shard_bytes=1000
  )
  prepare_here(tmp_path / "whole")
  expected = contents(tmp_path / "whole")
  assert len(expected) == 101 + 2  # shards, manifest, duplicates

  process, out = start(tmp_path, tmp_path / "a", tmp_path / "killed"), tmp_path / "killed" / "train"
  deadline = time.monotonic() + 60
  while len(list(out.glob("*.array_record"))) < 10:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.002)
  others = children(process.pid)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert len(others) >= 2
  while any(map(parent_of, others)):  # they must not write on
    assert time.monotonic() < deadline
    time.sleep(0.01)
  done = {p.name: p.stat().st_mtime_ns for p in out.glob("*.note.json")}
  assert 0 < len(done) < 101 and not (out / "manifest.json").exists()
  with pytest.raises(ValueError, match="No prepared split 'train'.*not prepared to the end"):
    records.records(tmp_path / "killed")

  shards = {name.removesuffix(".note.json") for name in done}
  before = {name: (out / name).stat().st_mtime_ns for name in shards}
  prepare_here(tmp_path / "killed")
  assert contents(tmp_path / "killed") == expected
  kept = sum((out / name).stat().st_mtime_ns == before[name] for name in shards)
  assert kept == len(shards)  # were not made again


def test_the_number_of_processes_changes_no_byte(tmp_path):
  write_folder(tmp_path / "a")
  found = originals.find(tmp_path / "a")
  for number in (0, 1, 2):
    writing.prepare(
      found, tmp_path / f"{number}", "train", writing.Recipe(), num_workers=number,
      shard_bytes=300,
    )  # fmt: skip
  assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
  assert len(contents(tmp_path / "0")) > 3


def test_what_changed_between_two_starts_is_made_again(tmp_path, monkeypatch):
  write_folder(tmp_path / "a")
  make = lambda out, **options: writing.prepare(
    originals.find(tmp_path / "a"), tmp_path / out, "train", writing.Recipe(), num_workers=0,
    shard_bytes=300, **options,
  )  # fmt: skip
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(writing, "_finish", interrupted)  # before the manifest
    make("out")
  (tmp_path / "a" / "c0" / "000.png").write_bytes(png(PIXELS[0][::-1]))
  make("out")
  make("fresh")
  assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
  with pytest.raises(ValueError, match="holds another set"):
    make("out", licence="other")


def interrupted(*_):
  raise KeyboardInterrupt


def test_a_second_start_of_a_prepared_set_does_nothing(tmp_path):
  write_folder(tmp_path / "a")
  run(tmp_path / "a", tmp_path / "out")
  before = contents(tmp_path / "out")
  run(tmp_path / "a", tmp_path / "out")
  assert contents(tmp_path / "out") == before


def test_a_full_disk_leaves_nothing_half_written(tmp_path, capsys):
  write_folder(tmp_path / "a")
  folder = tmp_path / "out" / "train"
  folder.mkdir(parents=True)
  # What is written to /dev/full fails as on a full disk.
  (folder / "train-00000-of-00001.array_record.partial").symlink_to("/dev/full")
  run(tmp_path / "a", tmp_path / "out", code=1)
  assert_error(capsys, "Cannot write .*: the disk is full. Nothing of it is left.*free some space")
  assert list(folder.iterdir()) == []
  run(tmp_path / "a", tmp_path / "out")
  assert len(read(tmp_path / "out")[0]) == 12


def test_a_disk_that_is_too_small_is_told_at_the_door(tmp_path, monkeypatch, capsys):
  write_folder(tmp_path / "a")
  usage = type("Usage", (), {"free": 1000})
  monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage)
  run(tmp_path / "a", tmp_path / "out", code=1)
  assert_error(capsys, "needs 0.00 GB more, but the disk of .* has 0.00 GB free")


# --- what is wrong with pictures ---


def animated(format):
  frames = [Image.fromarray(PIXELS[i]) for i in range(3)]
  return png(frames[0], format=format, save_all=True, append_images=frames[1:])


def with_alpha(opaque):
  alpha = np.full((6, 6, 1), 255, np.uint8)
  alpha[0, 0] = 255 if opaque else 254
  return Image.fromarray(np.concatenate([PIXELS[0], alpha], axis=-1))


def png_of_16_bits():
  """RGB, which Pillow reads, without a word, as 8 bits."""
  import struct
  import zlib

  rows = b"".join(b"\0" + x.astype(">u2").tobytes() for x in PIXELS[0].astype(int) * 257)
  chunk = lambda name, data: (
    struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  )
  header = struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)
  parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


KINDS = {
  "palette": lambda: png(Image.fromarray(PIXELS[0]).quantize(16)),
  "alpha": lambda: png(with_alpha(False)),
  "cmyk": lambda: png(Image.fromarray(PIXELS[0]).convert("CMYK"), format="jpeg"),
  "16-bit": png_of_16_bits,
  "animated": lambda: animated("webp"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_8_bits_of_rgb_is_named_and_converted_if_asked(tmp_path, capsys, kind):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "0.png").write_bytes(png(PIXELS[1]))
  (tmp_path / "a" / "1.png").write_bytes(KINDS[kind]())
  run(tmp_path / "a", tmp_path / "out", "--max_bad=1", code=1)
  assert_error(capsys, rf"1.png is {kind} \(Pillow's mode \w+\).*add {kind} to --convert")
  run(tmp_path / "a", tmp_path / "out", f"--convert={kind}")
  images, _ = read(tmp_path / "out")
  if kind in ("16-bit", "alpha"):  # nearly opaque: over white, only one pixel may change, by 1
    np.testing.assert_allclose(images[1].astype(int), PIXELS[0], rtol=0, atol=kind == "alpha")
  if kind == "palette":
    expected = Image.fromarray(PIXELS[0]).quantize(16).convert("RGB")
    np.testing.assert_array_equal(images[1], np.asarray(expected))
  assert manifest.read(tmp_path / "out", "train")[1].details["converted"] == {kind: 1}


@pytest.mark.parametrize(
  "words, background", [("black", (0, 0, 0)), ("#ff8000", (255, 128, 0)), ("white", (255,) * 3)]
)
def test_alpha_is_laid_over_the_background_that_is_named(tmp_path, words, background):
  (tmp_path / "a").mkdir()
  half = np.concatenate([PIXELS[0], np.full_like(PIXELS[0][..., :1], 102)], -1)  # 40 % opaque
  (tmp_path / "a" / "0.png").write_bytes(png(half))
  run(tmp_path / "a", tmp_path / "out", f"--background={words}")
  expected = 0.4 * PIXELS[0] + 0.6 * np.array(background)
  np.testing.assert_allclose(read(tmp_path / "out")[0][0], expected, rtol=0, atol=1)
  made = manifest.read(tmp_path / "out", "train")[1].details["made"]["transform"]
  assert made["convert"] == ["alpha"]
  # White is what it was before there was a choice: such a set goes on.
  assert made.get("background") == (None if words == "white" else list(background))


def test_a_background_that_is_no_colour_is_refused(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "0.png").write_bytes(png(PIXELS[0]))
  for words in ("whyte", "#ff800080", ""):
    run(tmp_path / "a", tmp_path / "out", f"--background={words}", code=1 if words else 0)
    if words:
      assert_error(capsys, f"'{words}' is no colour: white, black, gray or #rrggbb")


def test_gray_of_16_bits_keeps_its_upper_8(tmp_path):
  (tmp_path / "a").mkdir()
  values = RNG.integers(0, 65536, (6, 6), np.uint16)
  (tmp_path / "a" / "0.png").write_bytes(png(values))
  run(tmp_path / "a", tmp_path / "out", "--convert=16-bit")
  np.testing.assert_array_equal(read(tmp_path / "out")[0][0, ..., 0], values >> 8)


@pytest.mark.parametrize("format", ["gif", "png"])
def test_animated_files_of_other_formats_are_named(tmp_path, capsys, format):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / f"0.{format}").write_bytes(animated(format))
  run(tmp_path / "a", tmp_path / "out", code=1)
  assert_error(capsys, rf"0.{format} is .*animated")


def test_alpha_that_is_opaque_all_over_needs_no_asking(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "0.png").write_bytes(png(with_alpha(True)))
  run(tmp_path / "a", tmp_path / "out")
  np.testing.assert_array_equal(read(tmp_path / "out")[0][0], PIXELS[0])


@pytest.mark.parametrize("where", ["folder", "zip"])
def test_a_truncated_jpeg_is_named_or_left_out_and_counted(tmp_path, capsys, where):
  noise = RNG.integers(0, 256, (3, 40, 40, 3), np.uint8)
  (tmp_path / "a").mkdir()
  for i in range(3):
    data = png(noise[i], format="jpeg")
    (tmp_path / "a" / f"{i}.jpg").write_bytes(data[: len(data) // 2] if i == 1 else data)
  source = tmp_path / "a"
  if where == "zip":
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as file:
      for i in range(3):
        file.write(tmp_path / "a" / f"{i}.jpg", f"{i}.jpg")
  run(source, tmp_path / "out", code=1)
  assert_error(capsys, "Cannot decode 1.jpg: .*truncated.* Remove or replace it")
  run(source, tmp_path / "out", "--max_bad=1")
  assert len(read(tmp_path / "out")[0]) == 2
  left_out = manifest.read(tmp_path / "out", "train")[1].details["left_out"]
  assert len(left_out) == 1 and "1.jpg" in left_out[0]


def test_too_many_bad_ones_over_all_shards_are_an_error(tmp_path):
  (tmp_path / "a").mkdir()
  for i in range(8):
    (tmp_path / "a" / f"{i}.png").write_bytes(b"no image" if i % 2 else png(PIXELS[i]))
  with pytest.raises(
    ValueError, match="3 pictures cannot be read, more than --max_bad=2:\n.*1.png"
  ):
    writing.prepare(
      originals.find(tmp_path / "a"), tmp_path / "out", "train", writing.Recipe(),
      num_workers=0, shard_bytes=220, max_bad=2,
    )  # fmt: skip
  assert not (tmp_path / "out" / "train" / "manifest.json").exists()


def test_what_was_left_out_before_a_kill_counts_after_it(tmp_path, monkeypatch, capsys):
  (tmp_path / "a").mkdir()
  for i in range(3):
    (tmp_path / "a" / f"{i}.png").write_bytes(b"no image" if i == 1 else png(PIXELS[i]))
  with monkeypatch.context() as patch:
    patch.setattr(writing, "_finish", interrupted)
    run(tmp_path / "a", tmp_path / "out", "--max_bad=1", code=130)
  run(tmp_path / "a", tmp_path / "out", code=1)
  assert_error(capsys, "1 pictures cannot be read, more than --max_bad=0:\n.*1.png")


def test_a_picture_of_another_size_or_with_colours_is_not_left_out(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "0.png").write_bytes(png(PIXELS[0, ..., 0]))
  (tmp_path / "a" / "1.png").write_bytes(png(PIXELS[1, :3, :, 0]))
  run(tmp_path / "a", tmp_path / "out", "--max_bad=1", code=1)
  assert_error(capsys, "1.png is 3x6 with 1 channel, but the first picture is 6x6")
  (tmp_path / "a" / "1.png").write_bytes(png(PIXELS[1]))
  run(tmp_path / "a", tmp_path / "out", "--max_bad=1", code=1)
  assert_error(capsys, "1.png has colours, but this set is gray.*--channels=3")


def test_an_error_in_a_process_comes_through(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  for i in range(4):
    (tmp_path / "a" / f"{i}.png").write_bytes(png(PIXELS[i])[: 60 if i == 2 else None])
  assert prepare.main([str(tmp_path / "a"), "--out", str(tmp_path / "o"), "--workers=1"]) == 1
  assert_error(capsys, "Cannot decode 2.png")


# --- what is wrong with labels, sources and options ---


def labelled(tmp_path, table):
  write_folder(tmp_path / "a", PIXELS[:3], [0, 0, 0])
  (tmp_path / "a" / "dataset.json").write_text(json.dumps(table))
  return tmp_path / "a"


NAMES = [f"c0/{i:03d}.png" for i in range(3)]


@pytest.mark.parametrize(
  "labels, options, message",
  [
    ([0, 1, 5], ["--num_classes=3"], "label of c0/002.png is 5: .*from 0 up to 2"),
    ([0, -1, 1], [], "label of c0/001.png is -1: .*from 0 up"),
    ([0, 1.5, 1], [], "label of c0/001.png is 1.5: .*whole numbers"),
    ([0, "x", 1], [], "label of c0/001.png is 'x': .*or all text"),
    ([0, 3, 0], [], "2 of 4 classes have no picture, such as 1.*--num_classes=4"),
    ([0, 1], [], "no label for 1 of 3 pictures, such as c0/002.png"),
  ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, capsys, labels, options, message):
  source = labelled(tmp_path, {"labels": list(zip(NAMES, labels, strict=False))})
  run(source, tmp_path / "out", *options, code=1)
  assert_error(capsys, message)


def test_empty_classes_are_kept_if_that_is_said(tmp_path):
  source = labelled(tmp_path, dict(zip(NAMES, [0, 3, 0], strict=True)))
  run(source, tmp_path / "out", "--num_classes=5")
  assert records.records(tmp_path / "out").num_classes == 5


def test_sources_that_are_none_are_refused(tmp_path, capsys):
  write_folder(tmp_path / "a")
  (tmp_path / "a" / "empty").mkdir()
  (tmp_path / "nothing").mkdir()
  (tmp_path / "x.txt").write_text("")
  (tmp_path / "x.zip").write_text("PK")
  (tmp_path / "deep" / "a" / "b").mkdir(parents=True)
  (tmp_path / "deep" / "a" / "b" / "0.png").write_bytes(png(PIXELS[0]))
  (tmp_path / "deep" / "0.png").write_bytes(png(PIXELS[0]))
  (tmp_path / "bad.json").write_text("[1]")
  for source, options, message in (
    ("a", [], "No pictures in the subfolders empty of"),
    ("nothing", [], r"no pictures \(PNG, JPEG.* in "),
    ("x.txt", [], "file of an unknown kind"),
    ("x.zip", [], "Cannot read .*x.zip"),
    ("deep", [], "pictures at several levels"),
    ("none.zip", [], "There is nothing at"),
    ("deep", [f"--labels={tmp_path / 'bad.json'}"], "bad.json: .*must be JSON"),
    ("deep", ["--labels=none", "--convert=cymk"], "Unknown conversion cymk. Choose from: palette"),
    ("deep", ["--labels=none", "--held_out=0.1"], "held_out=0.1 of 2 images"),
    ("deep", ["--labels=none", "--split=a/b"], "split='a/b' names a folder"),
  ):
    run(tmp_path / source, tmp_path / "out", *options, code=1)
    assert_error(capsys, message)


def test_parquet_says_which_columns_and_splits_there_are(tmp_path, capsys):
  parquet(tmp_path / "a", column="kind")
  run(tmp_path / "a", tmp_path / "out", "--image_column=img", code=1)
  assert_error(capsys, "it has no column 'img': image, kind")
  run(tmp_path / "a", tmp_path / "out", "--split=val", code=1)
  assert_error(capsys, "No parquet file of split 'val' among 3")
  run(tmp_path / "a", tmp_path / "out", "--labels=kind")
  np.testing.assert_array_equal(read(tmp_path / "out")[1], LABELS)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x.parquet").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  run(tmp_path / "a", tmp_path / "out", code=1)
  assert_error(capsys, r"need pyarrow: pip install 'cmjax\[prepare\]'")


# --- splits and duplicates ---


def test_a_part_is_held_out_evenly(tmp_path):
  images, labels = write_folder(tmp_path / "a")
  run(tmp_path / "a", tmp_path / "out", "--held_out=0.25")
  (train, train_labels), (test, test_labels) = (
    read(tmp_path / "out", s) for s in ("train", "test")
  )
  np.testing.assert_array_equal(test, images[3::4])
  np.testing.assert_array_equal(test_labels, [0, 1, 2])
  assert len(train) == 9 and not (train[:, None] == test[None]).all((2, 3, 4)).any()
  folder = sources.as_array(sources.folder(tmp_path / "a", split="test", held_out=0.25))
  np.testing.assert_array_equal(test, folder[0])  # those of the source `folder`


def test_the_splits_of_a_set_must_agree(tmp_path, capsys):
  write_folder(tmp_path / "a")
  write_folder(tmp_path / "b", PIXELS[:4], [0, 1, 0, 1])
  run(tmp_path / "a", tmp_path / "out")
  run(tmp_path / "b", tmp_path / "out", "--split=test", code=1)
  assert_error(capsys, "Split 'train' .* has 3 classes .* this one 2 .*must agree")
  with pytest.raises(
    ValueError, match="No prepared split 'test' .* there is train. Add it: python"
  ):
    records.records(tmp_path / "out", split="test")


def test_duplicates_are_reported_and_kept(tmp_path):
  pixels = PIXELS.copy()
  pixels[[5, 9]] = pixels[1]  # classes 2, 0 and 1
  images, _ = write_folder(tmp_path / "a", pixels)
  run(tmp_path / "a", tmp_path / "out")
  np.testing.assert_array_equal(read(tmp_path / "out")[0], images)
  found = manifest.read(tmp_path / "out", "train")[1].details["duplicates"]
  assert found == {"groups": 1, "examples": 3, "groups_of_several_classes": 1}
  (group,) = json.loads((tmp_path / "out" / "train" / "duplicates.json").read_text())
  assert group["names"] == ["c0/009.png", "c1/001.png", "c2/005.png"]
  assert group["labels"] == [0, 1, 2]
  same = images[group["examples"]]
  assert (same == same[0]).all()


def fake_encoder(batch_size):
  """Latents of 3x3x1 that can be told; refuses batches that are too many at a time."""

  def encode(images):
    assert len(images) <= 66  # of PIECE, in whole batches
    mean = images[:, ::2, ::2, :1].astype(np.float32)
    return {"image": mean, "image_std": mean / 7}

  return writing.Encoder(encode, lambda shape: (3, 3, 1), {"name": "mine"}, batch_size)


def test_latents_are_encoded_in_pieces_and_killed_ones_go_on(tmp_path, monkeypatch):
  pixels = RNG.integers(0, 256, (300, 6, 6, 3), np.uint8)
  np.savez(tmp_path / "a.npz", train_images=pixels, train_labels=np.arange(300) % 3)
  make = lambda out: writing.prepare(
    originals.find(tmp_path / "a.npz"), tmp_path / out, "train", writing.Recipe(),
    num_workers=0, shard_bytes=150 * 76, encoder=fake_encoder(33),
  )  # fmt: skip
  assert [shard.num_records for shard in make("out").shards] == [150, 150]
  source = records.records(tmp_path / "out")
  got = source.take(np.arange(300))
  np.testing.assert_array_equal(got["image"], pixels[:, ::2, ::2, :1])
  np.testing.assert_allclose(got["image_std"], pixels[:, ::2, ::2, :1] / 7, rtol=1e-6)
  np.testing.assert_array_equal(got["label"], np.arange(300) % 3)
  assert source.latents == {"name": "mine"}
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(writing, "_finish", interrupted)
    make("killed")
  make("killed")
  assert contents(tmp_path / "killed") == contents(tmp_path / "out")


def test_shards_are_of_nearly_equal_length_and_not_too_many():
  for count, size, limit in ((1, 10, 100), (60_000, 3076, 2**23), (10**6, 10**5, 2**23)):
    lengths = [len(s) for s in writing._split_up(np.arange(count), size, limit)]
    assert sum(lengths) == count and max(lengths) - min(lengths) <= 1
    assert len(lengths) == min(math.ceil(count * size / limit), 1024)
