import concurrent.futures
import contextlib
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from cmjax.data import pipeline, sources, toy2d


def numbered(num=37, shape=(4, 5, 3), labels=True):
  """Image i is a ramp, asymmetric in every axis, that begins with i; its label is i % 7."""
  images = np.arange(num)[:, None] + np.arange(np.prod(shape))
  label = np.arange(num) % 7 if labels else None
  return sources.ArraySource(images.reshape(num, *shape).astype(np.uint8), label, 7 * labels)


def order(dataset, num):
  """The source indices of the first `num` elements of a dataset over unflipped `numbered()`."""
  steps = range(-(-num // len(dataset[0]["image"])))
  first = np.concatenate([dataset[k]["image"][:, 0, 0, 0] for k in steps])[:num]
  return np.round((first + 1) * 127.5).astype(int)


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name])


# --- pipeline: batches by step ---


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [0, 3, 4, 5, 7], [6]])
def test_a_process_has_its_rows_of_the_global_batch(rows):
  make = lambda rows: pipeline.dataset(numbered(), batch_size=8, seed=3, flip=True, rows=rows)
  whole, part = make(None), make(np.array(rows))
  for k in (0, 1, 4, 5, 123):  # 37 elements: batch 4 crosses the border of an epoch
    assert_same(part[k], {name: array[rows] for name, array in whole[k].items()})


def test_labels_stay_with_their_images():
  data = pipeline.dataset(numbered(), batch_size=74, seed=0)
  np.testing.assert_array_equal(data[0]["label"], order(data, 74) % 7)
  assert data[0]["label"].dtype == np.int32
  assert "label" not in pipeline.dataset(numbered(labels=False), batch_size=4, seed=0)[0]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(num_threads):
  data = pipeline.dataset(numbered(), batch_size=8, seed=1, flip=True, rows=np.arange(2, 6))
  with contextlib.closing(pipeline.batches(data, start=0, num_threads=num_threads)) as whole:
    expected = [next(whole) for _ in range(12)]
  with contextlib.closing(pipeline.batches(data, start=7, num_threads=num_threads)) as resumed:
    for k in range(7, 12):
      batch = next(resumed)
      assert_same(batch, expected[k])
      assert_same(batch, data[k])


def test_a_resume_far_from_the_beginning_costs_nothing():
  data = pipeline.dataset(numbered(), batch_size=8, seed=1)
  began = time.perf_counter()
  with contextlib.closing(pipeline.batches(data, start=10**12)) as iterator:
    assert_same(next(iterator), data[10**12])
  assert time.perf_counter() - began < 5.0


def test_a_closed_iterator_reads_no_more_and_an_open_one_does_not_hold_up_the_exit():
  iterator = pipeline.batches(pipeline.dataset(numbered(), batch_size=8, seed=1), start=0)
  next(iterator)
  iterator.close()
  with pytest.raises(ValueError, match="closed"):
    next(iterator)
  program = """
from cmjax.data import pipeline, sources
data = pipeline.dataset(sources.toy2d("checkerboard", num_points=64), batch_size=8, seed=1)
iterator = pipeline.batches(data, start=0)
next(iterator)
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_epoch_is_another_permutation_and_so_is_every_seed():
  epochs = order(pipeline.dataset(numbered(), batch_size=8, seed=0), 4 * 37).reshape(4, 37)
  other = order(pipeline.dataset(numbered(), batch_size=8, seed=1), 4 * 37).reshape(4, 37)
  for epoch in (*epochs, *other):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(37))
  # Also seed 1 does not begin where seed 0 goes on.
  assert len({tuple(epoch) for epoch in (*epochs, *other)}) == 8


def test_the_order_of_seed_0_is_the_one_of_the_runs_so_far():
  # If this fails, resumed runs see other batches than before: say so in the changelog.
  data = pipeline.dataset(numbered(num=100), batch_size=8, seed=0)
  np.testing.assert_array_equal(order(data, 8), [22, 82, 81, 9, 13, 18, 26, 71])
  np.testing.assert_array_equal(order(data, 108)[100:], [19, 17, 60, 81, 94, 74, 58, 9])


def test_long_seeds_share_no_epoch_with_short_ones():
  epochs = lambda seed: order(pipeline.dataset(numbered(), batch_size=37, seed=seed), 3 * 37)
  short, long = (epochs(seed).reshape(3, 37).tolist() for seed in (1, 1 + 2**32))
  assert not any(epoch in short for epoch in long)


@pytest.mark.parametrize("num", [1, 3, 37])
def test_the_order_does_not_depend_on_the_batch_size(num):
  source = numbered(num=num)
  make = lambda batch_size: pipeline.dataset(source, batch_size=batch_size, seed=4)
  whole = order(make(num), 8 * num + 3)
  for epoch in whole[: 8 * num].reshape(8, num):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(num))
  for batch_size in (1, 2, 8, 5 * num + 1):  # the last spans more than five epochs
    np.testing.assert_array_equal(order(make(batch_size), len(whole)), whole)


def test_a_batch_of_many_epochs_is_cut_among_processes():
  make = lambda rows: pipeline.dataset(numbered(num=3), batch_size=32, seed=1, flip=True, rows=rows)
  for k in (0, 5, 10**6):
    images = [make(np.arange(8 * p, 8 * p + 8))[k]["image"] for p in range(4)]
    np.testing.assert_array_equal(np.concatenate(images), make(None)[k]["image"])


def test_threads_that_read_in_any_order_get_the_batches_of_their_steps():
  make = lambda: pipeline.dataset(numbered(), batch_size=8, seed=6, flip=True)
  data, alone = make(), make()
  steps = np.random.default_rng(0).integers(0, 200, 200)  # 43 epochs, of which three are kept
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for k, batch in zip(steps, pool.map(lambda k: data[int(k)], steps), strict=True):
      assert_same(batch, alone[int(k)])


def test_a_permutation_is_made_once_for_all_batches_of_an_epoch(monkeypatch):
  made = []
  permutation = pipeline._permutation

  def slow(num, seed, epoch):
    made.append(epoch)
    time.sleep(0.02)  # for the other threads to come by
    return permutation(num, seed, epoch)

  monkeypatch.setattr(pipeline, "_permutation", slow)
  data = pipeline.dataset(numbered(), batch_size=2, seed=0)
  with contextlib.closing(pipeline.batches(data, start=0, num_threads=3, prefetch=4)) as iterator:
    for _ in range(3 * 37):
      next(iterator)
  assert made[:6] == list(range(6)) and len(made) <= 7


@pytest.mark.parametrize("batch_size", [1, 8])
def test_batches_do_not_end(batch_size):
  data = pipeline.dataset(numbered(), batch_size=batch_size, seed=0)
  assert len(data) == (2**63 - 1) // batch_size
  last = len(data) - 1
  with contextlib.closing(pipeline.batches(data, start=last)) as iterator:
    assert_same(next(iterator), data[last])


def test_the_shuffle_sends_every_element_everywhere():
  data = pipeline.dataset(numbered(num=100, shape=(1, 1, 1)), batch_size=100, seed=5)
  counts = np.zeros((10, 10))
  for k in range(64):
    np.add.at(counts, (order(data[k:], 100) // 10, np.arange(100) // 10), 1)
  # Near to a binomial of mean 64 and std 7.6.
  assert counts.min() > 30 and counts.max() < 100


def test_bytes_map_to_minus_one_to_one_and_back():
  source = sources.ArraySource(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1))
  image = pipeline.dataset(source, batch_size=1, seed=0)[0]["image"]
  assert image.dtype == np.float32 and image.shape == (1, 16, 16, 1)
  np.testing.assert_allclose(image.ravel(), np.arange(256) / 127.5 - 1.0, rtol=0, atol=1.2e-7)
  assert image.min() == -1.0 and image.max() == 1.0
  np.testing.assert_array_equal(np.rint((image.ravel() + 1) * 127.5), np.arange(256))


def test_points_pass_as_they_are():
  points = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
  batch = pipeline.dataset(sources.ArraySource(points), batch_size=9, seed=0)[0]["image"]
  assert batch.dtype == np.float32
  np.testing.assert_array_equal(np.sort(batch, axis=0), np.sort(points, axis=0))


def test_a_flip_mirrors_left_to_right_and_changes_nothing_else():
  make = lambda flip: pipeline.dataset(numbered(), batch_size=16, seed=2, flip=flip)
  plain, flipped = make(False)[9], make(True)[9]
  mirrored = np.any(flipped["image"] != plain["image"], axis=(1, 2, 3))
  assert 0 < mirrored.sum() < 16
  np.testing.assert_array_equal(flipped["label"], plain["label"])
  undone = np.where(mirrored[:, None, None, None], flipped["image"][:, :, ::-1], flipped["image"])
  np.testing.assert_array_equal(undone, plain["image"])


def test_a_flip_leaves_the_arrays_of_the_source_as_they_are():
  class Whole(sources.ArraySource):
    def take(self, indices):
      return dict(self._arrays)  # its own arrays, not copies

  images = numbered(num=16).take(np.arange(16))["image"]
  before = images.copy()
  mirrored = pipeline.dataset(Whole(images), batch_size=16, seed=0, flip=True)[0]["image"]
  assert not np.array_equal(np.rint((mirrored + 1) * 127.5), before)
  np.testing.assert_array_equal(images, before)


def test_flips_are_the_top_bits_of_splitmix64():
  # The published stream of seed 0: e220a8397b1dcdaf 6e789e6aa1b965f4 06c45d188009454f ...
  coins = pipeline.flips(0, np.arange(5, dtype=np.uint64))
  np.testing.assert_array_equal(coins, [True, False, False, True, False])


def test_flips_are_fair_coins_that_differ_by_seed():
  positions = np.arange(10**5, dtype=np.uint64)
  a, b = pipeline.flips(1, positions), pipeline.flips(2, positions)
  for coins in (a, b, a ^ b, a[1:] ^ a[:-1], a[512:] ^ a[:-512]):
    assert abs(coins.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(coins))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(batch_size=0), "batch_size=0 must be at least 1"),
    (dict(rows=np.arange(9)), r"rows=\[0 1 2 ... 6 7 8\] must be ascending, from 0 .* = 7"),
    (dict(rows=np.array([1, 0])), r"rows=\[1 0\] must be ascending"),
    (dict(rows=np.array([], int)), r"rows=\[\] must be .* at least one"),
    (dict(seed=-1), "seed=-1"),
    (dict(source=numbered(num=0)), "source is empty"),
    (dict(source=sources.toy2d("checkerboard", num_points=8), flip=True), r"shape \[2\].*flip=F"),
  ],
)
def test_a_dataset_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    pipeline.dataset(**dict(source=numbered(), batch_size=8, seed=0) | change)


def test_a_negative_start_is_refused():
  with pytest.raises(ValueError, match="start=-1"):
    pipeline.batches(pipeline.dataset(numbered(), batch_size=8, seed=0), start=-1)


# --- sources ---


def test_digits_hold_out_a_fifth_of_every_class():
  from sklearn.datasets import load_digits

  train, test = (sources.digits(split=split) for split in ("train", "test"))
  assert (len(train), len(test)) == (1442, 355)
  assert train.shape == test.shape == (8, 8, 1) and train.num_classes == 10
  (train_x, train_y), (test_x, test_y) = sources.as_array(train), sources.as_array(test)
  np.testing.assert_array_equal(np.bincount(test_y), np.bincount(load_digits().target) // 5)
  stored = np.concatenate([train_x, test_x]).reshape(1797, 64)
  assert stored.dtype == np.uint8
  np.testing.assert_array_equal(np.unique(stored), np.rint(np.arange(17) * 255 / 16))
  rows = lambda x, y: sorted(map(tuple, np.column_stack([x, y]).astype(int).tolist()))
  together = rows(np.rint(stored / 255 * 16), np.concatenate([train_y, test_y]))
  assert together == rows(load_digits().data, load_digits().target)


def test_npz_reads_images_and_labels(tmp_path):
  path, rng = tmp_path / "set.npz", np.random.default_rng(0)
  images = rng.integers(0, 256, (6, 3, 4), dtype=np.uint8)
  np.savez(
    path, train_images=images, train_labels=np.arange(6) % 3, test_images=images[:2, ..., None]
  )
  train, test = sources.npz(path), sources.npz(str(path), split="test")
  assert (len(train), train.shape, train.num_classes) == (6, (3, 4, 1), 3)
  assert (len(test), test.shape, test.num_classes) == (2, (3, 4, 1), 0)
  np.testing.assert_array_equal(train[4]["image"], images[4, ..., None])
  assert train[4]["label"] == 1 and train[4]["label"].dtype == np.int32
  assert test[0].keys() == {"image"}


def test_npz_counts_the_classes_of_both_splits(tmp_path):
  images = np.zeros((2, 3, 3, 1), np.uint8)
  labels = dict(train_labels=np.array([0, 1]), test_labels=np.array([4, 0]))
  np.savez(tmp_path / "set.npz", train_images=images, test_images=images, **labels)
  assert sources.npz(tmp_path / "set.npz").num_classes == 5
  assert sources.npz(tmp_path / "set.npz", split="test").num_classes == 5


IMAGES = np.zeros((3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    (dict(x=IMAGES, y=np.zeros(3)), "no train_images, only: x, y"),
    (dict(train_images=IMAGES[..., 0] + np.linspace(0, 1, 4)), r"all are in \[0, 1\].*2 x - 1"),
    (dict(train_images=IMAGES + 127.5), r"floats must be in \[-1, 1\], got up to 127.5"),
    (dict(train_images=IMAGES.astype(int)), r"int64 \[3, 4, 4, 3\].*must be uint8 .*or floats"),
    (dict(train_images=np.full((3, 4, 4, 6), np.nan)), "not finite"),
    (dict(train_images=IMAGES[0, 0]), r"uint8 \[4, 3\].*\[n, h, w, c\] or \[n, h, w\]"),
    (dict(train_images=IMAGES, train_labels=np.arange(4)), r"\[4\].*3 images: it must be \[3\]"),
    (dict(train_images=IMAGES, train_labels=np.ones(3)), "integers from 0 up.*float64"),
    (dict(train_images=IMAGES, train_labels=np.array([0, -1, 2])), "integers from 0 up.*-1"),
    (dict(train_images=np.array([{}, None], object)), "Object arrays cannot be loaded.*no objects"),
  ],
)
def test_npz_with_other_arrays_is_refused(tmp_path, arrays, message):
  np.savez(tmp_path / "set.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    sources.npz(tmp_path / "set.npz")


@pytest.mark.parametrize("shape", [(5, 4, 4, 6), (5, 4, 4, 3), (5, 2), (5, 3, 2, 4, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_an_npz_are_taken_as_they_are(tmp_path, shape, dtype):
  values = np.random.default_rng(0).normal(size=shape).astype(dtype)
  np.savez(tmp_path / "set.npz", train_images=values, train_labels=np.arange(5) % 2)
  data = sources.npz(tmp_path / "set.npz")
  assert (tuple(data.shape), data.num_classes, len(data)) == (shape[1:], 2, 5)
  batch = pipeline.dataset(data, batch_size=5, seed=0)[0]["image"]
  rows = lambda images: sorted(images.astype(np.float32).reshape(5, -1).tolist())
  assert rows(batch) == rows(values) and batch.dtype == np.float32


def test_npz_files_that_are_missing_or_damaged_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"No file at .*none.npz.*an .npz with train_images"):
    sources.npz(tmp_path / "none.npz")
  path = tmp_path / "set.npz"
  np.savez_compressed(path, train_images=np.random.default_rng(0).integers(0, 99, (9, 9, 9)))
  whole = path.read_bytes()
  middle = len(whole) // 2
  changed = whole[:middle] + bytes(99) + whole[middle + 99 :]
  for content in (b"", b"PK\3\4", whole[:middle], changed, bytes(500)):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Cannot read .*set.npz"):
      sources.npz(path)
  np.save(tmp_path / "one.npy", IMAGES)
  with pytest.raises(ValueError, match="Cannot read .*one.npy.*must be an .npz"):
    sources.npz(tmp_path / "one.npy")


def save(path, seed=0, size=(6, 5), mode="RGB"):
  """A random image file; returns its pixels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (*size, 3) if mode == "RGB" else size
  pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return pixels


def test_folder_numbers_its_subfolders_by_sorted_name(tmp_path):
  pixels = save(tmp_path / "dog" / "b.png", seed=1)
  (
    save(tmp_path / "cat" / "a.PNG"),
    save(tmp_path / "cat" / "b.jpeg"),
    save(tmp_path / ".x" / "a.png"),
  )
  (tmp_path / "cat" / "notes.txt").write_text("not an image")
  source = sources.folder(tmp_path)
  assert (len(source), source.shape, source.num_classes) == (3, (6, 5, 3), 2)
  assert [int(source[i]["label"]) for i in range(3)] == [0, 0, 1]
  np.testing.assert_array_equal(source[2]["image"], pixels)
  assert source[2]["label"].dtype == np.int32
  batch = pipeline.dataset(source, batch_size=3, seed=0, flip=True)[5]
  assert batch["image"].shape == (3, 6, 5, 3) and sorted(batch["label"]) == [0, 0, 1]


def test_folder_is_gray_only_if_every_file_is_or_if_asked(tmp_path):
  gray = save(tmp_path / "a.png", mode="L")
  assert sources.folder(tmp_path).shape == (6, 5, 1)
  np.testing.assert_array_equal(sources.folder(tmp_path)[0]["image"][..., 0], gray)
  save(tmp_path / "b.png")
  both = sources.folder(tmp_path)
  assert both.shape == (6, 5, 3) and both.num_classes == 0 and "label" not in both[0]
  np.testing.assert_array_equal(both[0]["image"], np.repeat(gray[..., None], 3, axis=-1))
  assert sources.folder(tmp_path, channels=1)[1]["image"].shape == (6, 5, 1)
  with pytest.raises(ValueError, match="channels=4"):
    sources.folder(tmp_path, channels=4)


def test_folder_splits_are_disjoint_and_spread_over_the_classes(tmp_path):
  for i in range(20):
    save(tmp_path / f"class{i // 10}" / f"{i}.png", seed=i)
  with pytest.raises(ValueError, match="no images for split 'test': held_out=0.0 of 20"):
    sources.folder(tmp_path, split="test")
  with pytest.raises(ValueError, match="held_out=1.0"):
    sources.folder(tmp_path, held_out=1.0)
  train, test = (sources.folder(tmp_path, split=s, held_out=0.2) for s in ("train", "test"))
  (a, _), (b, labels) = sources.as_array(train), sources.as_array(test)
  assert (len(a), len(b), labels.tolist()) == (16, 4, [0, 0, 1, 1])
  assert len(np.unique(np.concatenate([a, b]).reshape(20, -1), axis=0)) == 20


def test_folders_that_are_no_data_set_are_refused(tmp_path):
  with pytest.raises(ValueError, match="No folder at .*none"):
    sources.folder(tmp_path / "none")
  with pytest.raises(ValueError, match="There are no pictures .PNG, JPEG"):
    sources.folder(tmp_path)
  save(tmp_path / "cat" / "a.png")
  (tmp_path / "dog").mkdir()
  with pytest.raises(ValueError, match="No pictures in the subfolders dog of"):
    sources.folder(tmp_path)
  save(tmp_path / "a.png")
  with pytest.raises(ValueError, match="pictures at several levels"):
    sources.folder(tmp_path)


def test_folder_names_the_first_file_of_another_size_or_depth(tmp_path):
  (
    save(tmp_path / "a.png"),
    save(tmp_path / "b.png", size=(6, 7)),
    save(tmp_path / "c.png", size=(1, 1)),
  )
  with pytest.raises(ValueError, match="b.png is 6x7 .*a.png is 6x5"):
    sources.folder(tmp_path)
  Image.fromarray(np.zeros((6, 5), np.uint16)).save(tmp_path / "b.png")
  with pytest.raises(ValueError, match="b.png is 16-bit .Pillow's mode I;16.*8 bits"):
    sources.folder(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named_when_its_pixels_are_read(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  save(path, size=(64, 64))
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) * 3 // 4])
  source = sources.folder(tmp_path)  # reads headers only
  with pytest.raises(ValueError, match=f"Cannot decode .*a.{suffix}"):
    source[0]
  data = pipeline.dataset(source, batch_size=1, seed=0)
  with contextlib.closing(pipeline.batches(data, start=0)) as iterator:
    with pytest.raises(ValueError, match=f"Cannot decode .*a.{suffix}"):
      next(iterator)
  for content in (whole[:6], b""):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"Cannot decode .*a.{suffix}"):
      sources.folder(tmp_path)


@pytest.fixture
def tfds_mock():
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data(num_examples=5):
    yield


def test_tfds_reads_images_and_class_labels(tfds_mock):
  source = sources.tfds("cifar10", split="train")
  assert (len(source), source.shape, source.num_classes) == (5, (32, 32, 3), 10)
  assert source[0].keys() == {"image", "label"}
  assert source[0]["image"].dtype == np.uint8 and source[0]["label"].dtype == np.int32
  batch = pipeline.dataset(source, batch_size=10, seed=0)[1]
  assert batch["image"].shape == (10, 32, 32, 3) and batch["label"].dtype == np.int32


def test_tfds_without_class_labels_has_none(tfds_mock):
  source = sources.tfds("binarized_mnist", split="train")
  assert source.num_classes == 0 and source[0].keys() == {"image"}


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("imagenet_v2", r"'image' of 'imagenet_v2' is uint8 \[None, None, 3\].*one size"),
    ("ag_news_subset", "'image' of 'ag_news_subset' is absent.*features: description, label"),
    ("no_such_set", "tfds knows no data set 'no_such_set'"),
  ],
)
def test_tfds_sets_that_are_no_images_of_one_size_are_refused(tfds_mock, name, message):
  with pytest.raises(ValueError, match=message):
    sources.tfds(name)


def test_tfds_says_how_to_prepare_a_data_set(tmp_path):
  advice = r"'cifar10' is not prepared in .*cmjax\[prepare\].*tfds build cifar10 --file_format"
  with pytest.raises(ValueError, match=advice):
    sources.tfds("cifar10", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "imagenet_resized/64x64"])
def test_tfds_says_so_where_its_own_folder_has_nothing(monkeypatch, tmp_path, name):
  import tensorflow_datasets as tfds

  # What tfds raises there is another class than with a folder that is named.
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
  with pytest.raises(ValueError, match=f"'{name}' is not prepared in the default folder") as raised:
    sources.tfds(name)
  assert f"tfds build {name} --file_format=array_record" in str(raised.value)
  assert ("--config.data.name=cifar10" in str(raised.value)) == (name == "cifar10")


def test_an_unknown_split_of_a_prepared_tfds_set_is_told_as_that(tfds_mock, monkeypatch):
  import tensorflow_datasets as tfds

  def refuse(*args, **kwargs):
    raise KeyError("no split 'valid'")

  there = types.SimpleNamespace(info=types.SimpleNamespace(splits={"train": 1}))
  monkeypatch.setattr(tfds, "data_source", refuse)
  monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: there)
  with pytest.raises(ValueError, match="tfds cannot read split 'valid' of 'cifar10'"):
    sources.tfds("cifar10", split="valid")


def test_tfds_is_read_without_importing_tensorflow(tmp_path):
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text("")  # found and imported if asked for
  program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import tensorflow_datasets
from cmjax.data import pipeline, sources
with tensorflow_datasets.testing.mock_data(num_examples=3):
  pipeline.dataset(sources.tfds("cifar10", split="train"), batch_size=3, seed=0)[0]
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize(
  "factory",
  [
    sources.digits,
    lambda split: sources.npz("set.npz", split=split),
    lambda split: sources.folder("images", split=split),
    lambda split: sources.toy2d("checkerboard", split=split),
  ],
)
def test_an_unknown_split_is_refused(factory):
  with pytest.raises(ValueError, match="Unknown split 'valid'. Choose from: train, test"):
    factory(split="valid")


def test_statistics_are_those_of_the_scaled_pixels():
  source = numbered(num=3000)
  images, labels = sources.as_array(source)
  x = images / 127.5 - 1.0
  stats = sources.statistics(source)
  assert stats["mean"] == pytest.approx(x.mean(), abs=1e-12)
  assert stats["std"] == pytest.approx(x.std(), abs=1e-12)
  assert (stats["num"], stats["shape"], stats["num_classes"]) == (3000, (4, 5, 3), 7)
  assert sources.statistics(source, max_items=4)["num"] == 4
  some, some_labels = sources.as_array(source, limit=4)  # from end to end, not the first four
  np.testing.assert_array_equal(some, images[::750])
  np.testing.assert_array_equal(some_labels, labels[::750])
  assert len(sources.as_array(source, limit=10**6)[0]) == 3000
  with pytest.raises(ValueError, match="Asked for 0 elements"):
    sources.as_array(source, limit=0)
  with pytest.raises(ValueError, match="source is empty"):
    sources.statistics(numbered(num=0))


def test_the_statistics_of_digits_are_those_of_scikit_learns_pixels():
  from sklearn.datasets import load_digits

  counts = []
  for split in sources.SPLITS:
    stats = sources.statistics(sources.digits(split=split))
    x = sources.as_array(sources.digits(split=split))[0].astype(np.float64) / 127.5 - 1.0
    assert stats["mean"] == pytest.approx(np.mean(x), abs=1e-12)
    assert stats["std"] == pytest.approx(np.std(x), abs=1e-12)
    counts.append((stats["num"], stats["mean"], stats["std"] ** 2 + stats["mean"] ** 2))
  num, mean, square = np.array(counts).T
  x = np.rint(load_digits().data * (255 / 16)) / 127.5 - 1.0  # both splits together
  assert np.average(mean, weights=num) == pytest.approx(x.mean(), abs=1e-12)
  assert np.average(square, weights=num) == pytest.approx(np.mean(x**2), abs=1e-12)


# --- points in the plane ---


@pytest.mark.parametrize("name", sorted(toy2d.DISTRIBUTIONS))
def test_points_have_zero_mean_and_a_std_of_sigma_data(name):
  x = toy2d.DISTRIBUTIONS[name](np.random.default_rng(0), 10**6)
  assert x.dtype == np.float32 and x.shape == (10**6, 2)
  # Five standard errors: 0.5 / sqrt(1e6) of a mean, less than 0.5 / sqrt(2e6) of the std.
  np.testing.assert_allclose(x.mean(0, dtype=np.float64), 0.0, atol=2.5e-3)
  assert np.sqrt(np.mean(np.square(x, dtype=np.float64))) == pytest.approx(0.5, abs=1.8e-3)


def test_checkerboard_points_lie_evenly_on_the_black_squares():
  x = toy2d.checkerboard(np.random.default_rng(1), 80_000).astype(np.float64)
  square = np.floor((x / toy2d.CHECKERBOARD_HALF_WIDTH + 1.0) * 2.0).astype(int)
  counts = np.zeros((4, 4), int)
  np.add.at(counts, tuple(square.T), 1)
  black = np.indices((4, 4)).sum(0) % 2 == 0
  assert counts[~black].sum() == 0
  np.testing.assert_allclose(counts[black], 10_000, atol=500)


def test_the_two_spirals_are_each_other_turned_by_half_a_circle():
  x = toy2d.two_spirals(np.random.default_rng(2), 100_000).astype(np.float64)
  scale = np.sqrt(toy2d.SPIRAL_ANGLE**2 / 4 + toy2d.SPIRAL_NOISE**2) / toy2d.SIGMA_DATA
  radius = scale * np.hypot(*x.T)
  # On an arm the angle is the radius, plus pi on the other: the cosine is 1 or -1 up to noise.
  cosine = np.cos(radius - np.arctan2(x[:, 1], x[:, 0]))
  assert np.mean(np.abs(cosine[radius > 2.0]) > 0.8) > 0.99
  assert np.mean(cosine > 0) == pytest.approx(0.5, abs=0.008)
  ends = [np.quantile(radius[cosine * side > 0], [0.1, 0.5, 0.9]) for side in (1, -1)]
  np.testing.assert_allclose(*ends, rtol=0.02)


def test_the_modes_of_the_mixture_are_where_it_says():
  x = toy2d.gaussian_mixture(np.random.default_rng(3), 80_000)
  offsets = x[:, None] - toy2d.MIXTURE_MEANS
  nearest = np.argmin(np.sum(offsets**2, axis=-1), axis=1)
  np.testing.assert_allclose(np.bincount(nearest, minlength=8), 10_000, atol=500)
  residual = offsets[np.arange(len(x)), nearest]
  assert residual.std() == pytest.approx(toy2d.MIXTURE_STD, rel=0.01)
  variance = np.mean(toy2d.MIXTURE_MEANS**2) + toy2d.MIXTURE_STD**2
  assert variance == pytest.approx(toy2d.SIGMA_DATA**2, rel=1e-12)


def test_toy_sources_are_seeded_and_their_splits_independent():
  make = lambda **kwargs: sources.as_array(
    sources.toy2d("two_spirals", **dict(num_points=64) | kwargs)
  )[0]
  np.testing.assert_array_equal(make(), make())
  assert not np.array_equal(make(), make(seed=1))
  assert not np.array_equal(make(), make(split="test"))
  source = sources.toy2d("checkerboard")
  assert (len(source), source.shape, source.num_classes) == (65_536, (2,), 0)
  with pytest.raises(ValueError, match="'moons'. Choose from: checkerboard, gaussian_mixture, two"):
    sources.toy2d("moons")


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  np.savez(tmp_path / "a.npz", train_images=np.full((3, 4, 4, 1), 7, np.uint8))
  assert sources.npz("~/a.npz")[0]["image"].max() == 7
