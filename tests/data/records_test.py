"""Prepared sets as a source, what is wrong with them, and latents as they are trained on."""

import concurrent.futures
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from cmjax import experiment, latents, pages
from cmjax.base import sharding
from cmjax.commands import prepare
from cmjax.data import pipeline, records, shards, sources
from cmjax.data.prepare import validation
from cmjax.program import compiled_step, plan, stored_runs, train
from cmjax.training import microbatch
from helpers.prepared_sets import RNG, config, latent_arrays, write_set


def images(num=35, shape=(4, 5, 3)):
  pixels = RNG.integers(0, 256, (num, *shape), np.uint8)
  return {"image": pixels, "label": np.arange(num) % 7}


def damage(path, record):
  """Changes a byte of a record in its file."""
  data = bytearray(path.read_bytes())
  place = data.find(record)
  assert place > 0 and data.count(record) == 1
  data[place + 3] ^= 255
  path.write_bytes(data)


# --- reading ---


def test_records_come_back_in_any_order_from_many_threads(tmp_path):
  arrays = images()
  source = records.records(write_set(tmp_path, arrays, num_classes=7))
  assert (len(source), source.shape, source.num_classes) == (35, (4, 5, 3), 7)
  assert source[17]["label"] == 3 and source[17]["label"].dtype == np.int32
  chosen = [RNG.integers(0, 35, 16) for _ in range(100)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for indices, got in zip(chosen, pool.map(source.take, chosen), strict=True):
      np.testing.assert_array_equal(got["image"], arrays["image"][indices])
      np.testing.assert_array_equal(got["label"], arrays["label"][indices])


def test_batches_of_records_are_those_of_arrays(tmp_path):
  arrays = images()
  source = records.records(write_set(tmp_path, arrays, num_classes=7))
  other = sources.ArraySource(arrays["image"], arrays["label"], 7)
  for rows in (None, np.array([1, 5, 6])):
    a, b = (
      pipeline.dataset(s, batch_size=8, seed=3, flip=True, rows=rows) for s in (source, other)
    )
    for k in (0, 4, 123):
      np.testing.assert_array_equal(a[k]["image"], b[k]["image"])
      np.testing.assert_array_equal(a[k]["label"], b[k]["label"])


def test_a_damaged_record_is_named_and_replaced_by_the_next_sound_one(tmp_path, caplog):
  arrays = images()
  path = write_set(tmp_path, arrays, num_classes=7)
  layout = records.records(path)._layout
  packed = layout.pack(arrays)
  for i in (9, 10, 34):
    damage(path / "train" / shards.name("train", i // 10, 4), packed[i])
  expected = np.arange(35)
  expected[[9, 10, 34]] = 11, 11, 0  # across shards, and round the end
  source = records.records(path, max_corrupt=3)
  for order in (np.arange(35), RNG.permutation(35)):
    got = source.take(order)
    np.testing.assert_array_equal(got["image"], arrays["image"][expected[order]])
    np.testing.assert_array_equal(got["label"], arrays["label"][expected[order]])
  assert source.num_corrupt == 3
  named = [r.getMessage() for r in caplog.records]
  assert len(named) == 3 and "Record 9 of" in named[0] and "(example 9) is damaged" in named[0]
  strict = records.records(path, max_corrupt=2)
  strict.take(np.array([9]))  # and 10, which would have taken its place
  with pytest.raises(ValueError, match=r"Record 4 of .*\(example 34\) .* more than max_corrupt=2"):
    strict.take(np.array([3, 34]))
  with pytest.raises(ValueError, match="more than max_corrupt=2"):  # and again
    strict.take(np.array([34]))
  with pytest.raises(ValueError, match="That makes 1, more than max_corrupt=0. Copy the shard"):
    records.records(path).take(np.array([9]))


def test_a_set_of_damaged_records_only_is_an_error(tmp_path):
  arrays = images(num=2)
  path = write_set(tmp_path, arrays, num_classes=7)
  for record in records.records(path)._layout.pack(arrays):
    damage(path / "train" / shards.name("train", 0, 1), record)
  with pytest.raises(ValueError, match="That makes 2"):
    records.records(path, max_corrupt=100)[0]


def test_sets_that_do_not_match_their_manifest_are_refused(tmp_path):
  path = write_set(tmp_path / "a", images(), num_classes=7)
  first, last = (path / "train" / shards.name("train", k, 4) for k in (0, 3))
  whole = last.read_bytes()
  last.write_bytes(whole[:-1])
  with pytest.raises(ValueError, match="has 131,071 bytes, but its manifest says 131,072: copy it"):
    records.records(path)
  last.unlink()
  with pytest.raises(ValueError, match="has no bytes, but its manifest says 131,072"):
    records.records(path)
  last.write_bytes(first.read_bytes())  # of the same size, of ten records and not five
  with pytest.raises(ValueError, match="has 10 records, but its manifest says 5"):
    records.records(path)[34]
  other = write_set(tmp_path / "b", images(shape=(4, 5, 1)), num_classes=7)
  (other / "train" / first.name).replace(first)
  with pytest.raises(ValueError, match="has records of 24 bytes, but its manifest says 64"):
    records.records(path)[0]
  first.write_bytes(bytes(len(whole)))
  with pytest.raises(ValueError, match="Cannot open .*its end is damaged"):
    records.records(path)[0]


def test_a_manifest_that_is_none_is_refused(tmp_path):
  with pytest.raises(ValueError, match="there is no such folder. Prepare it: python -m cmjax"):
    records.records(tmp_path / "none")
  path = write_set(tmp_path / "a", images(), num_classes=7)
  file = path / "train" / "manifest.json"
  content = json.loads(file.read_text())
  for change, message in (
    ({"format": "cmjax-records-9"}, "no manifest of cmjax-records-1: format 'cmjax-records-9'"),
    ({"num_examples": 36}, "says 36 examples, but its shards have 35"),
    ({"shards": [{"name": "x"}]}, "no manifest of"),
  ):
    file.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
      records.records(path)
  file.write_text("{")
  with pytest.raises(ValueError, match="no manifest of"):
    records.records(path)
  with pytest.raises(ValueError, match="max_corrupt=-1"):
    records.records(path, max_corrupt=-1)


# --- validation ---


def test_a_sound_set_is_said_to_be(tmp_path, capsys):
  write_set(tmp_path, images(), num_classes=7)
  write_set(tmp_path, images(), num_classes=7, split="test")
  assert prepare.main(["--validate", str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert "35 images of 4x5x3, 7 classes, 4 shards" in out and out.endswith("It is sound.\n")


def test_validation_names_what_is_wrong(tmp_path):
  arrays = images()
  arrays["label"][12] = 7
  path = write_set(tmp_path, arrays, num_classes=7)
  names = [path / "train" / shards.name("train", k, 4) for k in range(4)]
  damage(names[0], records.records(path)._layout.pack(arrays)[6])
  names[2].unlink()
  (path / "train" / "train-00007-of-00009.array_record").write_bytes(b"")
  (path / "val").mkdir()
  (path / "val" / "val-00000-of-00002.array_record.partial").write_bytes(b"")
  problems = validation.validate(path).problems
  for message in (
    "00000-of-00004.array_record has the sha256",
    "Record 6 of .*00000-of-00004.array_record is damaged",
    "Record 2 of .*00001-of-00004.array_record has the label 7: there are 7 classes",
    "00002-of-00004.array_record is not there",
    "1 files that the manifest does not list, such as train-00007-of-00009",
    "val: not prepared to the end",
  ):
    assert any(matches(message, problem) for problem in problems), message
  assert len(problems) == 6
  assert prepare.main(["--validate", str(path)]) == 1


def matches(pattern, text):
  return re.search(pattern, text) is not None


def test_validation_finds_images_that_two_splits_share(tmp_path):
  arrays = images()
  write_set(tmp_path, arrays, num_classes=7)
  write_set(tmp_path, {k: a[:3] for k, a in arrays.items()}, num_classes=7, split="test")
  report = validation.validate(tmp_path)
  assert not report.problems
  assert any("3 different images are in both 'test' and 'train'" in note for note in report.notes)
  with pytest.raises(ValueError, match="There is no folder"):
    validation.validate(tmp_path / "none")


def test_validation_finds_latents_that_are_not_finite(tmp_path):
  arrays = latent_arrays()
  arrays["image"][3, 0, 0, 0], arrays["image_std"][5, 0, 0, 0] = np.nan, -1
  path = write_set(tmp_path, arrays, num_classes=10, recorded=latents.record())
  problems = validation.validate(path).problems
  assert ["Record 3" in problems[0], "Record 5" in problems[1]] == [True, True]


# --- in a bucket ---


class Bucket(MemoryFileSystem):
  """What fsspec has for s3://, in memory."""

  protocol, store, pseudo_dirs, cachable = "s3", {}, [""], False

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).replace("s3://", "memory://"))


@pytest.fixture
def bucket(monkeypatch):
  """A function that copies a folder to s3://here/set; and the file system."""
  memory = Bucket()
  monkeypatch.setattr(Bucket, "store", {})
  monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", lambda name: memory)

  def put(folder):
    for path in folder.rglob("*"):
      if path.is_file():
        memory.pipe_file(f"s3://here/set/{path.relative_to(folder)}", path.read_bytes())
    return "s3://here/set"

  return put, memory


def test_a_set_in_a_bucket_is_mirrored_once(tmp_path, bucket, caplog):
  put, memory = bucket
  arrays = images()
  path = put(write_set(tmp_path / "a", arrays, num_classes=7))
  cache = tmp_path / "cache"
  with caplog.at_level("INFO", "cmjax"):
    source = records.records(path, cache=cache)
  np.testing.assert_array_equal(source.take(np.arange(35))["image"], arrays["image"])
  assert "Copying 4 of 4 shards" in caplog.text and "Copied 4 of 4 shards." in caplog.text
  (folder,) = cache.iterdir()
  kept = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert len(kept) == 4 and not [name for name in kept if name.endswith(".part")]
  lost = folder / min(kept)
  lost.unlink()
  caplog.clear()
  with caplog.at_level("INFO", "cmjax"):
    again = records.records(path, cache=cache)
  np.testing.assert_array_equal(again.take(np.arange(35))["image"], arrays["image"])
  assert "Copying 1 of 4 shards" in caplog.text
  assert {p.name for p in folder.iterdir() if p.stat().st_mtime_ns == kept[p.name]} == set(kept) - {
    lost.name
  }


def test_a_set_prepared_anew_in_a_bucket_is_another(tmp_path, bucket):
  put, _ = bucket
  first, second = images(), images()
  records.records(put(write_set(tmp_path / "a", first, num_classes=7)), cache=tmp_path / "cache")
  path = put(write_set(tmp_path / "b", second, num_classes=7))
  got = records.records(path, cache=tmp_path / "cache").take(np.arange(35))["image"]
  np.testing.assert_array_equal(got, second["image"])


def test_what_cannot_be_mirrored_says_why(tmp_path, bucket, monkeypatch):
  put, memory = bucket
  path = put(write_set(tmp_path / "a", images(), num_classes=7))
  with pytest.raises(ValueError, match="No prepared split 'test' in s3://here/set: there is train"):
    records.records(path, split="test")
  name = next(key for key in memory.store if key.endswith("00001-of-00004.array_record"))
  good = memory.cat_file(name)
  memory.pipe_file(name, good[:-1] + b"x")
  with pytest.raises(ValueError, match="is not the shard of its manifest: its sha256 is"):
    records.records(path, cache=tmp_path / "cache")
  memory.rm_file(name)
  with pytest.raises(ValueError, match="Cannot copy s3://here/set/train/.*whole are kept"):
    records.records(path, cache=tmp_path / "cache")
  memory.pipe_file(name, good)
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
  with pytest.raises(ValueError, match="0.00 GB are free.*data.records.cache"):
    records.records(path, cache=tmp_path / "cache")
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match=r"Cannot mirror .*file/x.*Not a dir.*data\.records\.cache"):
    records.records(path, cache=tmp_path / "file" / "x")
  monkeypatch.undo()
  monkeypatch.setitem(sys.modules, "s3fs", None)
  with pytest.raises(ValueError, match="Cannot read s3://here/set: Install s3fs"):
    records.records(path, cache=tmp_path / "cache")


# --- through build, and latents ---


def test_latents_of_another_convention_are_refused_at_train_time(tmp_path):
  path = write_set(
    tmp_path / "a", latent_arrays(), num_classes=10, recorded=latents.record(latents.EDM2)
  )
  message = r"a \(data.records.latents='scm'\): Recorded is another latent convention.*name 'edm2'"
  with pytest.raises(ValueError, match=message):
    train.train(experiment.parse(config(path)), tmp_path / "run")
  opened = lambda *args: experiment.opened(experiment.parse(config(*args)))
  assert opened(path, "edm2").shape == (4, 4, 4)
  with pytest.raises(
    ValueError, match="holds latents of the convention 'edm2', but the config says"
  ):
    opened(path, None)
  with pytest.raises(ValueError, match="Unknown convention .data.records.latents. 'sdxl'"):
    opened(path, "sdxl")
  pixels = write_set(tmp_path / "b", images(shape=(4, 4, 4)), num_classes=10)
  with pytest.raises(ValueError, match="holds pixels, but data.records.latents='scm'. Prepare"):
    opened(pixels)
  changed = latents.record() | {"mean": [0.0] * 4}
  path = write_set(tmp_path / "c", latent_arrays(), num_classes=10, recorded=changed)
  with pytest.raises(ValueError, match=r"mean \[0.0, 0.0, 0.0, 0.0\] \(expected \[1.56"):
    opened(path)


def test_a_step_on_latents_is_made_of_their_mean_and_std(tmp_path):
  path = write_set(tmp_path, latent_arrays(), num_classes=10, recorded=latents.record())
  given = experiment.parse(config(path))
  state, batch, *rest = plan.abstract_arguments(given, sharding.make_mesh())
  batches = experiment.batches(given, sharding.make_mesh(), 0)
  shapes = {name: a.shape for name, a in next(batches).items()}
  batches.close()
  assert {name: a.shape for name, a in batch.items()} == shapes
  step = compiled_step.make_step_fn(given, experiment.transformation(given))
  after, metrics = jax.eval_shape(step, state, batch, *rest)
  assert jax.tree.structure(after) == jax.tree.structure(state) and "loss" in metrics


def test_a_network_of_another_convention_is_refused_as_a_teacher(tmp_path, monkeypatch):
  parsed = lambda *args: experiment.parse(config(*args))
  ours, theirs = parsed("a", "scm"), parsed("b", "edm2")
  trained = stored_runs.Trained(experiment.describe(theirs.record), {"main": {}}, 0)
  monkeypatch.setattr(stored_runs, "load_network", lambda *_, **__: trained)
  monkeypatch.setattr(stored_runs, "check_trained", lambda *_: None)
  stored, mesh = experiment.Stored("there", "main"), sharding.make_mesh()
  message = "in there was trained on latents of the convention 'edm2', this run is for .* 'scm'"
  with pytest.raises(ValueError, match=message):
    stored_runs.load_model(ours, stored, mesh, "teacher")
  with pytest.raises(ValueError, match="'edm2', this run is for no latents"):
    stored_runs.load_model(parsed("a", None), stored, mesh, "teacher")
  assert stored_runs.load_model(theirs, stored, mesh, "teacher").model[1] == {}


@pytest.mark.slow  # a minute, nearly all of it compilation
def test_a_run_on_latents_trains_and_is_no_start_for_another_convention(tmp_path):
  recorded = {name: latents.record(c) for name, c in latents.CONVENTIONS.items()}
  paths = {
    name: write_set(tmp_path / name, latent_arrays(), num_classes=10, recorded=record)
    for name, record in recorded.items()
  }
  trained = experiment.parse(config(paths["edm2"], "edm2", total_steps=2))
  train.train(trained, tmp_path / "run")
  assert stored_runs.load_state(tmp_path / "run", sharding.make_mesh()).step == 2
  assert 0.4 < sources.statistics(experiment.opened(trained))["std"] < 0.6
  start = {"init_from.workdir": str(tmp_path / "run")}
  message = "trained on latents of the convention 'edm2', this run is for latents of the .* 'scm'"
  with pytest.raises(ValueError, match=message):
    train.train(experiment.parse(config(paths["scm"], **start)), tmp_path / "other")


def test_a_mirrored_latent_is_refused(tmp_path):
  path = write_set(tmp_path, latent_arrays(), num_classes=10, recorded=latents.record())
  c = config(path, **{"data.flip": True})
  with pytest.raises(ValueError, match="data.flip=True: a mirrored latent"):
    experiment.batches(experiment.parse(c), sharding.make_mesh(), 0)


def echo(params, batch, key, step):
  """A loss that shows what it is given."""
  return jnp.zeros(()), batch


def test_latents_are_drawn_anew_at_every_step_from_the_mean_and_the_std(tmp_path):
  arrays = latent_arrays(num=8)
  path = write_set(tmp_path, arrays, num_classes=10, recorded=latents.record())
  given = experiment.parse(config(path))
  batches = experiment.batches(given, sharding.make_mesh(), 0)
  batch = next(batches)
  batches.close()
  assert set(batch) == {"image", "image_std", "label"}
  drawn = jax.jit(latents.drawn(echo))
  keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(0), k))(jnp.arange(2000))
  _, once = drawn(None, batch, keys[0], 0)
  assert set(once) == {"image", "label"}
  np.testing.assert_array_equal(once["image"], drawn(None, batch, keys[0], 0)[1]["image"])
  images = np.asarray(jax.vmap(lambda key: drawn(None, batch, key, 0)[1]["image"])(keys))
  std = np.asarray(batch["image_std"])
  np.testing.assert_allclose(images.mean(0), batch["image"], atol=6 * 0.2 / np.sqrt(2000))
  np.testing.assert_allclose(images.std(0) / std, 1, atol=6 / np.sqrt(2 * 2000))
  noise = (images - np.asarray(batch["image"])) / std
  assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.01


def test_parts_of_a_batch_draw_what_the_whole_batch_draws():
  arrays = {k: jnp.asarray(a) for k, a in latent_arrays(num=8).items()}
  loss = latents.drawn(echo)
  whole = loss(None, arrays, jax.random.key(3), 0)[1]["image"]
  for m in range(2):
    key = microbatch.part_key(jax.random.key(3), m, 2, 4)
    part = loss(None, {k: a[m::2] for k, a in arrays.items()}, key, 0)[1]["image"]
    np.testing.assert_array_equal(part, whole[m::2])


def test_the_draw_shares_no_noise_with_the_loss():
  arrays = {k: jnp.asarray(a) for k, a in latent_arrays(num=64).items()}
  key = jax.random.key(1)
  draw = latents.drawn(echo)(None, arrays, key, 0)[1]["image"]
  noise = np.ravel((draw - arrays["image"]) / arrays["image_std"])
  used = [*jax.random.split(key, 3), *jax.random.split(key, 5), jax.random.fold_in(key, 3), key]
  for other in used:
    z = np.asarray(jax.random.normal(other, noise.shape))
    assert abs(np.corrcoef(noise, z)[0, 1]) < 0.1


@pytest.mark.parametrize("family", ["teacher", "sct", "scd", "scd_vsd"])
def test_the_pages_of_imagenet_512_have_the_papers_numbers(family):
  """sCM, table 5 and appendix C."""
  table = {
    "s": (192, 1.0, 0.0, 0.25, 0.025, 1_048_576),
    "m": (256, 0.9, 0.1, 0.35, 0.03, 1_048_576),
    "l": (320, 0.8, 0.1, 0.35, 0.015, 696_000),
    "xl": (384, 0.7, 0.1, 0.35, 0.02, 598_000),
    "xxl": (448, 0.65, 0.1, 0.35, 0.015, 376_000),
  }
  for size, (channels, rate, dropout, sct_dropout, sigma_rel, teacher_steps) in table.items():
    c = pages.load(f"imagenet512_{family}:{size}")
    assert c.net.channels == channels and c.batch_size == 2048 and not c.data.flip
    is_teacher = family == "teacher"
    assert c.optim.lr == pytest.approx(rate * (1e-2 if is_teacher else 1e-4))
    assert (c.optim.b1, c.optim.b2, c.optim.eps) == (0.9, 0.99, 1e-11)
    assert c.optim.schedule.decay_steps == 70_000
    assert c.net.dropout == (sct_dropout if family == "sct" else dropout)
    assert c.ema.main.sigma_rel == (sigma_rel if is_teacher else 0.05)
    steps = dict(teacher=teacher_steps, sct=100_000, scd=200_000, scd_vsd=20_000)
    assert c.total_steps == steps[family]
    proposal = (-0.4, 1.0) if is_teacher else (-0.8, 1.6)
    assert (c.loss.P_mean, c.loss.P_std) == proposal
    assert c.data.records.latents == "scm"
    if family == "scd_vsd":
      vsd = c.loss.vsd
      assert (vsd.P_mean, vsd.P_std, vsd.lambda_vsd) == (0.4, 2.0, 1.0)
      assert (vsd.fake.P_mean, vsd.fake.P_std, vsd.fake.optim.lr) == (-0.8, 1.6, c.optim.lr)


@pytest.mark.parametrize("family", ["teacher", "sct", "scd"])
def test_the_pages_of_imagenet_64_have_the_papers_numbers(family):
  """sCM, table 4."""
  table = {
    "s": (192, 1.0, 0.0, 0.075, 1_048_576),
    "m": (256, 0.9, 0.1, 0.06, 1_486_000),
    "l": (320, 0.8, 0.1, 0.04, 761_000),
    "xl": (384, 0.7, 0.1, 0.04, 540_000),
  }
  for size, (channels, rate, dropout, sigma_rel, teacher_steps) in table.items():
    c, is_teacher = pages.load(f"imagenet64_{family}:{size}"), family == "teacher"
    assert c.net.channels == channels and c.batch_size == 2048
    assert c.optim.lr == pytest.approx(rate * (1e-2 if is_teacher else 1e-4))
    assert c.net.dropout == dict(teacher=dropout, sct=0.45, scd=0.0)[family]
    assert c.ema.main.sigma_rel == (sigma_rel if is_teacher else 0.05)
    assert c.total_steps == (teacher_steps if is_teacher else 400_000)
    assert (c.loss.P_mean, c.loss.P_std) == ((-0.8, 1.6) if is_teacher else (-1.0, 1.6))
