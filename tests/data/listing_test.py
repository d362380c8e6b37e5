"""Which files are pictures, what their classes are, and what is said of both."""

import io
import json
import logging
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmjax import experiment
from cmjax.commands import prepare
from cmjax.data import image_lists, image_sets, manifest, pixel_range, records, sources, summary
from cmjax.data.prepare import originals
from cmjax.program import sample
from helpers import prepared_sets, tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)


def png(i=0):
  file = io.BytesIO()
  Image.fromarray(PIXELS[i % len(PIXELS)]).save(file, format="png")
  return file.getvalue()


def lay(root, files):
  """Files by name: pictures, unless their content is given; names that end in / are folders."""
  named = files if isinstance(files, dict) else dict.fromkeys(files)
  for i, (name, content) in enumerate(named.items()):
    path = root / name
    if name.endswith("/"):
      path.mkdir(parents=True, exist_ok=True)
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = b"no picture" if name.endswith(".txt") else png(i)
    path.write_bytes(picture if content is None else content)
  return root


def zipped(root, to):
  with zipfile.ZipFile(to, "w") as file:
    for path in sorted(root.rglob("*")):
      file.write(path, path.relative_to(root))
  return to


def found(root, **options):
  """(names, labels, class names, passed over) as each reader sees a folder; they must agree."""
  source = sources.folder(root, **options)
  got = [p.relative_to(root).as_posix() for p in source._files]
  labels = None if source._labels is None else source._labels.tolist()
  for other in (
    originals.find(root, **options),
    originals.find(zipped(root, f"{root}.zip"), **options),
  ):
    assert list(other.names) == got and other.class_names == source.class_names
    assert (None if other.labels is None else other.labels.tolist()) == labels
    assert other.passed_over == source.passed_over
  assert image_sets.read(root)._files == source._files if not options else True
  return got, labels, source.class_names, source.passed_over


def refused(root, message, **options):
  """All readers refuse a folder, in the same words."""
  readers = [
    lambda: sources.folder(root, **options),
    lambda: originals.find(root, **options),
    lambda: originals.find(zipped(root, f"{root}.zip"), **options),
  ]
  for reader in readers:
    with pytest.raises(ValueError, match=message):
      reader()


# --- which files are pictures ---


def test_all_readers_know_the_same_formats(tmp_path):
  suffixes = [s.upper() if i % 2 else s for i, s in enumerate(image_lists.SUFFIXES)]
  lay(tmp_path / "a", [f"{i:02d}{s}" for i, s in enumerate(suffixes)])
  names, labels, _, passed_over = found(tmp_path / "a")
  assert len(names) == len(suffixes) == 10 and labels is None and passed_over == {}


SYSTEM = (
  ".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "__MACOSX/._0.png", "__MACOSX/0.png",
  "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "lost+found/x.png", "$RECYCLE.BIN/x.png",
)  # fmt: skip


def test_what_systems_leave_is_no_picture_and_no_class(tmp_path):
  lay(tmp_path / "a", ["cat/0.png", "dog/1.png", "lost+found/", ".Trashes/", *SYSTEM])
  names, labels, classes, passed_over = found(tmp_path / "a")
  assert names == ["cat/0.png", "dog/1.png"] and labels == [0, 1] and classes == ["cat", "dog"]
  assert passed_over == {"system files": len(SYSTEM)}


def test_other_files_are_counted_by_their_suffix(tmp_path):
  extra = {"a.txt": b"", "b.TXT": b"x", "c.json": b"{}", "README": b"hello", ".x.png": None}
  lay(tmp_path / "a", {"0.png": None, ".cache/1.png": None, **extra})
  assert found(tmp_path / "a")[3] == {
    ".txt": 2, ".json": 1, "without a suffix": 1, "hidden": 2,
  }  # fmt: skip
  assert summary.log(sources.folder(tmp_path / "a"), "a").line.startswith(
    "a: 1 images of 4x4x3; no classes; passed over: 1 .json, 2 .txt, 2 hidden, 1 without a suffix;"
  )


@pytest.mark.parametrize("suffix", ["avif", "heic", "jxl", "ppm", "PSD", "tga"])
def test_pictures_of_formats_that_are_not_read_are_not_passed_over(tmp_path, suffix):
  lay(tmp_path / "a", {"0.png": None} | {f"x{i}.{suffix}": b"?" for i in range(3)})
  refused(tmp_path / "a", f"3 files of formats that are not read .3 .{suffix.lower()}., such as x0")


@pytest.mark.parametrize("name", ["x", "x.png_large", "x.jpg~", "x.dat", "x.png.bak", "x.tmp"])
def test_pictures_under_other_names_are_not_passed_over(tmp_path, name):
  lay(tmp_path / "a", ["0.png", name])
  refused(tmp_path / "a", "pictures that their names do not show: x.* begins as PNG, and 1 files")


def test_300_pictures_are_300_pictures_whoever_reads_them(tmp_path):
  kinds = ["png", "jpg", "webp", "bmp", "tif", "jpeg", "jfif", "tiff", "jpe", "png"]
  lay(tmp_path / "a", dict.fromkeys([f"{i:03d}.{kinds[i % 10]}" for i in range(300)], png()))
  assert len(image_sets.read(tmp_path / "a")) == len(originals.find(tmp_path / "a")) == 300


def test_a_folder_without_pictures_says_what_it_has(tmp_path):
  lay(tmp_path / "a", {"0.npy": b"x", "1.npy": b"x", ".DS_Store": b""})
  refused(tmp_path / "a", r"no pictures \(PNG.*in .*Passed over: 2 .npy, 1 system files")


# --- classes ---


DEEP = {
  "one depth": ["train/cat/0.png", "train/dog/1.png", "val/cat/2.png"],
  "three deep": ["a/b/c/0.png", "a/b/d/1.png"],
  "mixed": ["0.png", "cat/1.png"],
  "more in a class": ["cat/0.png", "dog/1.png", "dog/more/2.png"],
  "deep and flat": ["0.png", "a/b/1.png"],
}


@pytest.mark.parametrize("kind", DEEP)
def test_pictures_deeper_than_a_subfolder_are_no_unlabelled_set(tmp_path, kind):
  # A folder around all of a zip does not count, so it has a picture of its own.
  lay(tmp_path / "a", DEEP[kind])
  readers = [lambda: sources.folder(tmp_path / "a"), lambda: originals.find(tmp_path / "a")]
  if kind != "three deep":
    readers.append(lambda: originals.find(zipped(tmp_path / "a", tmp_path / "a.zip")))
  for reader in readers:
    with pytest.raises(ValueError, match="pictures at several levels, or deeper than a subfolder"):
      reader()
  names, labels, classes, _ = found(tmp_path / "a", labels="none") if kind != "three deep" else (
    sources.folder(tmp_path / "a", labels="none")._files, None, [], {})  # fmt: skip
  assert len(names) == len(DEEP[kind]) and labels is None and classes == []


@pytest.mark.parametrize(
  "folders", [("train", "val"), ("Train", "Test"), ("training", "validation"), ("test", "eval")]
)
def test_splits_are_not_taken_for_classes(tmp_path, folders):
  lay(tmp_path / "a", [f"{folder}/{i}.png" for folder in folders for i in range(2)])
  refused(tmp_path / "a", f"are splits .*, not classes. Give the path of one, .*{min(folders)}")


SHARDS = {
  "EDM": [f"{n // 1000:05d}/img{n:08d}.png" for n in (0, 1, 999, 1000, 2500)],
  "FFHQ": [f"{n // 1000:05d}/{n:05d}.png" for n in (0, 1000, 69_999)],
  "FFHQ's first": [f"00000/{n:05d}.png" for n in range(4)],
  "hundreds": [f"{n // 100}/{n}.png" for n in (0, 99, 100, 350)],
  "ten thousands": [f"{n // 10_000:02d}/im_{n}.png" for n in (5, 10_000, 29_000)],
  "hashes": [f"{h[:2]}/{h}.png" for h in ("a3f0" * 8, "00c1" * 8, "ffee" * 8)],
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_are_not_taken_for_classes(tmp_path, kind):
  lay(tmp_path / "a", [*SHARDS[kind], "extra.txt"])
  refused(tmp_path / "a", "look like shards, not classes, such as .*Give labels .--labels.*or none")
  assert found(tmp_path / "a", labels="none")[1] is None


CLASSES = {
  "MNIST": [f"{c}/{i}.png" for c in (0, 1, 7) for i in range(3)],
  "numbered through": [f"{n // 4}/{n:05d}.png" for n in range(12)],
  "ImageNet": ["n01440764/n01440764_10026.JPEG.png", "n01443537/n01443537_2.png"],
  "prefix": ["cat/cat_001.png", "dog/dog_002.png"],
  "years": [f"{year}/{i}.png" for year in (1999, 2000) for i in range(2)],
  "one class": ["cat/0.png", "cat/1.png"],
  "a class named test": ["test/0.png", "cat/0.png"],
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_are_not_taken_for_shards_or_splits(tmp_path, kind):
  lay(tmp_path / "a", [*CLASSES[kind], "extra.txt"])
  names, labels, classes, _ = found(tmp_path / "a")
  assert names == sorted(CLASSES[kind]) and classes == sorted({n.split("/")[0] for n in names})
  assert [classes[label] for label in labels] == [n.split("/")[0] for n in names]


def test_an_empty_class_is_refused_in_a_zip_too(tmp_path):
  lay(tmp_path / "a", ["cat/0.png", "dog/", "extra.txt"])
  refused(tmp_path / "a", "No pictures in the subfolders dog of .*a")
  (tmp_path / "a" / "dog" / "notes.txt").write_text("none yet")
  refused(tmp_path / "a", "No pictures in the subfolders dog of .*a")


EDM = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]
TABLES = {
  "EDM": ({"labels": [[n, i] for i, n in enumerate(EDM)]}, [0, 1, 2]),
  "text": (dict(zip(EDM, ["b", "a", "b"], strict=True)), [1, 0, 1]),
  "backslashes": ({"labels": [[n.replace("/", "\\"), 0] for n in EDM]}, [0, 0, 0]),
  "no labels": ({"labels": None}, None),
  "dots": ({f"./{n}": 0 for n in EDM}, [0, 0, 0]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_dataset_json_says_the_classes_to_every_reader(tmp_path, kind):
  table, expected = TABLES[kind]
  lay(tmp_path / "a", dict.fromkeys(EDM) | {"dataset.json": json.dumps(table).encode()})
  names, labels, _, passed_over = found(tmp_path / "a")
  assert names == EDM and labels == expected and passed_over == {}


WRONG = {
  "an entry without a picture": ({n: 0 for n in [*EDM, "00001/img00001001.png"]},
                                 "names 1 pictures that are not there, such as 00001/img00001001"),
  "a picture without an entry": ({n: 0 for n in EDM[1:]}, "has no label for 1 of 3 pictures"),
  "twice": ({"labels": [[n, 0] for n in [*EDM, EDM[0]]]}, "more than once, such as 00000/img00000"),
  "a list": ([1], "must be JSON"),
  "an empty class": ({n: 2 * i for i, n in enumerate(EDM)}, "2 of 5 classes have no picture"),
  "a label that is none": ({n: -1 for n in EDM}, "label of .* is -1"),
  "other names": ({f"images/{n}": 0 for n in EDM}, "has no label for 3 of 3 pictures"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_dataset_json_that_does_not_fit_is_refused_by_every_reader(tmp_path, kind):
  table, message = WRONG[kind]
  lay(tmp_path / "a", dict.fromkeys(EDM) | {"dataset.json": json.dumps(table).encode()})
  refused(tmp_path / "a", message)


def test_a_labels_file_may_speak_of_more_pictures_and_that_is_said(tmp_path, caplog):
  lay(tmp_path / "a", EDM)
  (tmp_path / "l.json").write_text(json.dumps({n: 0 for n in [*EDM, "more.png"]}))
  assert found(tmp_path / "a", labels=str(tmp_path / "l.json"))[1] == [0, 0, 0]
  assert "names 1 pictures that are not there, such as more.png" in caplog.text


def test_links_are_followed_and_circles_are_refused(tmp_path):
  lay(tmp_path / "far", ["0.png"])
  lay(tmp_path / "a", ["cat/1.png"])
  (tmp_path / "a" / "dog").symlink_to(tmp_path / "far")
  assert sources.folder(tmp_path / "a").class_names == ["cat", "dog"]
  assert originals.find(tmp_path / "a").class_names == ["cat", "dog"]
  (tmp_path / "far" / "up").symlink_to(tmp_path / "a")
  for reader in (sources.folder, originals.find):
    with pytest.raises(ValueError, match="leads back to a folder that it is in"):
      reader(tmp_path / "a")


def test_a_zip_of_windows_keeps_its_classes_and_one_with_a_name_twice_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
    for i, name in enumerate(("cat\\0.png", "dog\\1.png")):
      file.writestr(name, png(i))
  assert originals.find(tmp_path / "a.zip").class_names == ["cat", "dog"]
  with pytest.warns(UserWarning, match="Duplicate"):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
      for i in range(2):
        file.writestr("0.png", png(i))
  with pytest.raises(ValueError, match="it has '0.png' twice"):
    originals.find(tmp_path / "b.zip")


def test_pictures_beside_parquet_files_are_not_lost(tmp_path):
  lay(tmp_path / "a", {"0.png": None, "data/x.parquet": b""})
  with pytest.raises(ValueError, match="has 1 pictures and 1 .parquet files"):
    originals.find(tmp_path / "a")


# --- plausibility ---

LIGHT = PIXELS / 255.0
RANGES = {
  "floats in [0, 1]": (LIGHT, "must be in .-1, 1., but all are in .*2 x - 1"),
  "half floats in [0, 1]": (LIGHT.astype(np.float16), "must be in .-1, 1., but all are in"),
  "floats of 0 and 1": ((LIGHT > 0.5).astype(np.float32), "must be in .-1, 1., but all are in"),
  "floats in [0, 255]": (PIXELS.astype(np.float32), "got up to 25"),
  "nan": (np.where(LIGHT > 0.9, np.nan, LIGHT), "not finite"),
  "infinite": (np.where(LIGHT > 0.9, np.inf, -LIGHT), "not finite"),
  "bytes of 0 and 1": ((LIGHT > 0.5).astype(np.uint8), "no values but 0 and 1"),
}


@pytest.mark.parametrize("kind", RANGES)
def test_images_of_a_range_that_cannot_be_meant_are_refused(tmp_path, kind):
  images, message = RANGES[kind]
  np.savez(tmp_path / "a.npz", images=images, train_images=images)
  with pytest.raises(ValueError, match=message):
    image_sets.read(tmp_path / "a.npz")
  if images.dtype == np.uint8:
    with pytest.raises(ValueError, match=message):
      sources.npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
  "images", [LIGHT * 2 - 1, LIGHT - 1, np.zeros((3, 4, 4, 1)), PIXELS, PIXELS * 0, LIGHT * 1.2]
)
def test_ranges_that_can_be_meant_are_not_refused(images):
  pixel_range.check(images, "x")
  pixel_range.check(np.abs(np.random.default_rng(0).random((9, 2))), "points")


def test_labels_of_images_are_from_0_up(tmp_path):
  np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.arange(40) - 1)
  with pytest.raises(ValueError, match="labels must be from 0 up, got -1"):
    image_sets.read(tmp_path / "a.npz")


SUSPECT = {
  "labels from 1": ((PIXELS, np.arange(40) % 3 + 1, 4), "1 of 4 classes have no image, such as 0"),
  "a gap": ((PIXELS, np.arange(40) % 3 * 2, 5), "2 of 5 classes have no image, such as 1"),
  "one far label": ((PIXELS, np.array([0] * 39 + [2**31 - 2]), 2**31 - 1), "such as 1. Do the"),
  "masks": (((LIGHT > 0.5).astype(np.uint8), None, 0), "no values but 0 and 1"),
  "16 levels": ((PIXELS // 16, None, 0), "no value is above 15 of 255"),
  "floats in [0, 1]": ((LIGHT, None, 0), "must be in .-1, 1., but all are in"),
  "one colour": ((np.full_like(PIXELS, 7), None, 0), "all values are equal"),
}


@pytest.mark.parametrize("kind", SUSPECT)
def test_what_is_not_plausible_is_one_warning(caplog, kind):
  arguments, message = SUSPECT[kind]
  with caplog.at_level(logging.WARNING, "cmjax"):
    summary.log(sources.ArraySource(*arguments), "x")
  warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
  assert any(w.startswith("x: ") for w in warned) and len(warned) <= 2
  assert re.search(message, "\n".join(warned))


# --- the opening line ---


def test_the_opening_line_counts_measures_and_names(caplog):
  source = sources.ArraySource(PIXELS, np.arange(40) % 4 // 2, 2)
  source.class_names = ["cat", "dog"]
  x = PIXELS / 127.5 - 1
  said = summary.summarise(source, "data.mine (train)", sigma_data=0.5)
  assert said.line == (
    "data.mine (train): 40 images of 4x4x3; 2 classes (cat 20, dog 20); "
    f"mean {x.mean():.3f}, std {x.std():.3f} (sigma_data 0.5)."
  )
  assert said.warnings == []
  many = sources.ArraySource(np.zeros((3000, 64, 64, 1), np.uint8), np.arange(3000) % 20, 20)
  line = summary.summarise(many, "x").line
  assert "20 classes (0 150, 1 150," in line and "..., 150 to 150 of each)" in line
  assert "of 1,024 of them" in line


def opening(caplog):
  return [m for r in caplog.records if " images of " in (m := r.getMessage())]


def configured(folder, **data):
  c = tiny.config().unlock()
  c.sigma_data = 0.25
  c.data = dict(name="folder", flip=False, folder=dict(path=str(folder), **data))
  c.net = dict(
    name="ddpmpp", resolution=4, in_channels=3, channels=4, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), num_classes=0, dtype="float32",
  )  # fmt: skip
  c.evals = dict(
    fd=dict(name="frechet", features="pixels", samplers=("one_step",), emas=("main",),
            every_steps=1, num_samples=20, batch_size=20)
  )  # fmt: skip
  return experiment.parse(c)


def test_measure_prints_the_flags_to_paste(tmp_path):
  for name in ("cat", "dog"):  # of one colour each, so that there is something to learn
    (tmp_path / "a" / name).mkdir(parents=True)
    for i in range(20):
      colour = tuple(np.random.default_rng(i).integers(0, 256, 3).tolist())
      Image.new("RGB", (4, 4), colour).save(tmp_path / "a" / name / f"{i}.png")
  exp = configured(tmp_path / "a")
  said = sample.measure(exp).splitlines()
  found = json.loads(said[0])
  for line, kind in zip(said[-2:], ("teacher", "consistency"), strict=True):
    flags = line.partition(": ")[2].split()
    assert flags == [
      f"--config.sigma_data={found['std']:.3f}",
      "--config.net.resolution=4",
      "--config.net.in_channels=3",
      "--config.net.num_classes=2",
      f"--config.loss.P_mean={found[kind]['P_mean']:.2f}",
      f"--config.loss.P_std={found[kind]['P_std']:.2f}",
    ]
  assert "a diffusion teacher" in said[-2] and "sCT or sCD" in said[-1]


def test_measure_says_the_shape_where_the_page_has_another(tmp_path):
  lay(tmp_path / "a", [f"{i}.png" for i in range(20)])
  c = configured(tmp_path / "a").record
  said = sample.measure(experiment.parse({**c, "net": {**c["net"], "resolution": 8}}))
  assert "--config.net.resolution=4 --config.net.in_channels=3 --config.net.num_classes=0" in said


def test_every_mode_that_reads_data_opens_with_its_line(tmp_path, caplog):
  caplog.set_level(logging.INFO, "cmjax")
  lay(tmp_path / "a", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(20)])
  (tmp_path / "a" / "notes.txt").write_text("")
  exp = configured(tmp_path / "a", held_out=0.5)
  sample.measure(exp)
  sample.measure(exp)  # it is open: nothing new to say
  (line,) = opening(caplog)
  assert line.startswith("data.folder (train): 20 images of 4x4x3; 2 classes (cat 10, dog 10); ")
  assert "passed over: 1 .txt; mean " in line and line.endswith("(sigma_data 0.25).")
  caplog.clear()
  np.savez(tmp_path / "b.npz", images=PIXELS[:20])
  sample.evaluate_images(
    configured(tmp_path / "a", held_out=0.5), tmp_path / "w", tmp_path / "b.npz"
  )
  lines = opening(caplog)
  assert (
    sum(line.startswith("--images b.npz: 20 images of 4x4x3; no classes;") for line in lines) == 1
  )
  assert {line.split(":")[0] for line in lines} == {
    "--images b.npz", "data.folder (train)", "data.folder (test)",
  }  # fmt: skip
  assert not [r for r in caplog.records if "scaled alike" in r.getMessage()]


@pytest.mark.parametrize(
  ("scale", "shift", "warns"),
  [(1, 0, False), (0.55, 0, False), (0.4, 0, True), (0.01, 0, True), (1, 0.6, True), (3, 0, True)],
)
def test_another_scale_than_that_of_the_data_is_noticed(scale, shift, warns):
  data = PIXELS / 127.5 - 1
  one, other = (
    summary.summarise(sources.ArraySource(x), "x") for x in (data * scale + shift, data)
  )
  assert (summary.compare(one, other) is not None) == warns


def test_images_that_are_scaled_unlike_the_data_are_warned_of(tmp_path, caplog):
  lay(tmp_path / "a", [f"{i}.png" for i in range(40)])
  np.savez(tmp_path / "b.npz", images=(PIXELS[:20] / 127.5 - 1) / 4)
  exp = configured(tmp_path / "a", held_out=0.5)
  sample.evaluate_images(exp, tmp_path / "w", tmp_path / "b.npz")
  (warned,) = [r.getMessage() for r in caplog.records if "scaled alike" in r.getMessage()]
  assert warned.startswith("--images b.npz: the images have mean ")


def test_prepare_says_what_it_found_and_keeps_it_in_the_manifest(tmp_path, caplog, capsys):
  caplog.set_level(logging.INFO, "cmjax")
  lay(tmp_path / "a", {"cat/0.png": None, "dog/1.png": None, "x.txt": b"", "Thumbs.db": b""})
  assert prepare.main([str(tmp_path / "a"), "--out", str(tmp_path / "out"), "--workers=0"]) == 0
  expected = (
    "a (folder): 2 pictures; 2 classes (cat 1, dog 1); passed over: 1 .txt, 1 system files."
  )
  assert [r.getMessage() for r in caplog.records if r.getMessage().endswith(expected)]
  details = manifest.read(tmp_path / "out", "train")[1].details
  assert details["passed_over"] == {".txt": 1, "system files": 1}
  source = records.records(tmp_path / "out")
  assert source.class_counts == {0: 1, 1: 1} and source.class_names == ["cat", "dog"]


def test_counts_in_a_manifest_that_are_none_are_not_shown(tmp_path):
  label = np.zeros(4, np.int32)
  path = prepared_sets.write_set(
    tmp_path / "s", {"image": PIXELS[:4], "label": label}, num_classes=1
  )
  file = path / "train" / "manifest.json"
  content = json.loads(file.read_text())
  for counts in ([None], ["4"], []):
    file.write_text(json.dumps(content | {"class_counts": counts}))
    assert summary.summarise(records.records(path), "x").line.startswith(
      "x: 4 images of 4x4x3; 1 class"
    )


def test_a_name_that_is_no_text_is_one_line(tmp_path):
  lay(tmp_path / "a", ["0.png"])
  with open(bytes(tmp_path / "a") + b"/\xff.png", "wb") as file:
    file.write(png())
  for reader in (sources.folder, originals.find):
    with pytest.raises(ValueError, match=r"is no UTF-8: '\\udcff.png'. Rename it"):
      reader(tmp_path / "a")
