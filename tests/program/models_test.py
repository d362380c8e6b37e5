"""Models in one file: what an export draws is what its run draws; those that cmjax brings."""

import hashlib
import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from cmjax import experiment
from cmjax.convert import detect
from cmjax.program import convert, models, sample, searched_times, stored_runs
from helpers import in_process, tiny

pytestmark = pytest.mark.usefixtures("shared_programs")
NAMES = ["digits", "fashion_mnist"]


def conditional(**values):
  return tiny.digits(total_steps=2, **values)


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory, shared_programs):
  workdir = tmp_path_factory.mktemp("models") / "run"
  tiny.train(conditional(), workdir)
  return workdir


def arrays(written):
  """The images of an .npz that was just written."""
  with np.load(next(path for path in written if path.suffix == ".npz")) as found:
    return found["arr_0"]


def drawn(path, out, **options):
  stored = models.read(path)
  return models.sample(experiment.parse(stored.record), path, out=out, **options)


def metadata(path):
  with safe_open(path, framework="numpy") as file:
    return json.loads(file.metadata()[detect.METADATA])


def changed(source, target, **values):
  """A copy of an exported file that says something else of itself."""
  tensors = safetensors.numpy.load_file(source)
  said = {detect.METADATA: json.dumps({**metadata(source), **values})}
  safetensors.numpy.save_file(tensors, target, metadata=said)
  return target


def test_a_file_draws_what_its_run_draws(run, tmp_path):
  convert.export(run, tmp_path / "a.safetensors")
  options = dict(name="two_steps", num_samples=20, seed=3)
  own = sample.sample(stored_runs.read_experiment(run), run, out=tmp_path / "b", **options)
  found = drawn(tmp_path / "a.safetensors", tmp_path / "c", **options)
  assert [path.name for path in found] == ["two_steps_seed3.png", "two_steps_seed3.npz"]
  np.testing.assert_array_equal(arrays(found), arrays(own))
  assert metadata(tmp_path / "a.safetensors")["config"]["evals"] == {}


def test_in_half_precision_a_file_is_half_as_large_and_draws_nearly_the_same(run, tmp_path):
  for dtype in ("float32", "float16"):
    said = convert.export(run, tmp_path / f"{dtype}.safetensors", dtype=dtype)
    assert f"numbers in {dtype}" in said
  a, b = (safetensors.numpy.load_file(tmp_path / f"float{n}.safetensors") for n in (32, 16))
  assert {x.dtype for x in a.values()} == {np.dtype("float32")}
  assert {x.dtype for x in b.values()} == {np.dtype("float16")}
  for name, array in a.items():
    np.testing.assert_array_equal(array.astype(np.float16), b[name])
  images = [
    arrays(drawn(tmp_path / f"float{n}.safetensors", tmp_path / str(n), name="one_step"))
    for n in (32, 16)
  ]
  assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 2


def test_numbers_that_float16_does_not_hold_are_refused(run, tmp_path, monkeypatch):
  load = stored_runs.load_average

  def large(*args):
    described, params, step = load(*args)
    return described, jax.tree.map(lambda a: a + 1e5, params), step

  monkeypatch.setattr(stored_runs, "load_average", large)
  with pytest.raises(ValueError, match=r"numbers of .* are too large for float16: take float32"):
    convert.export(run, tmp_path / "a.safetensors", dtype="float16")
  assert not list(tmp_path.iterdir())


def test_times_that_were_searched_are_in_the_file(run, tmp_path):
  weights = stored_runs.newest_weights(run)
  searched_times.write(run, {"two_steps": {"mid_times": [0.6], "weights": weights}})
  try:
    convert.export(run, tmp_path / "a.safetensors")
  finally:
    (run / searched_times.FILE).unlink()
  assert metadata(tmp_path / "a.safetensors")["config"]["samplers"]["two_steps"]["mid_times"] == [
    0.6
  ]


@pytest.mark.slow
def test_names_of_classes_are_in_the_file(run, tmp_path):
  assert "class_names" not in metadata_of(run, tmp_path / "a.safetensors")
  config = conditional().unlock()
  images = np.zeros((20, 8, 8, 1), np.uint8)
  labels = np.arange(20, dtype=np.int32) % 10
  arrays = {f"{split}_{what}": x for split in ("train", "test")
            for what, x in (("images", images), ("labels", labels))}  # fmt: skip
  np.savez(tmp_path / "data.npz", **arrays)
  names = tuple("abcdefghij")
  config.data = dict(
    name="npz", flip=False, npz=dict(path=str(tmp_path / "data.npz"), class_names=names)
  )
  tiny.train(config, tmp_path / "run")
  assert metadata_of(tmp_path / "run", tmp_path / "b.safetensors")["class_names"] == list(names)
  assert models.read(tmp_path / "b.safetensors").class_names == names
  config.data.npz.class_names = ("a", "b")
  with pytest.raises(ValueError, match="has 10 classes, and data.npz.class_names has 2 names"):
    experiment.opened(experiment.parse(config))


def metadata_of(run, path):
  convert.export(run, path)
  return metadata(path)


def test_a_file_that_says_what_cannot_be_is_refused_in_one_line(run, tmp_path):
  convert.export(run, tmp_path / "a.safetensors")
  said = metadata(tmp_path / "a.safetensors")
  config = said["config"]
  for values, told in (
    (dict(config=None), "has no config, as files of earlier versions"),
    (dict(config=[1]), "has no config, as files of earlier versions"),
    (dict(class_names="abc"), "its class_names are no list of names"),
    (dict(class_names=["a"]), "has 1 class names, and its network 10 classes"),
    (dict(config=config | {"samplers": {"x": {"name": "os:system"}}}), "os:system"),
    (dict(config=config | {"total_steps": "many"}), "total_steps='many' must be"),
    (dict(net=said["net"] | {"num_blocks": 10**6}), "it says num_blocks=1000000"),
  ):
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **values)
    with pytest.raises(ValueError, match=told) as refused:
      drawn(path, tmp_path / "out")
    assert "\n" not in str(refused.value)
  assert not (tmp_path / "out").exists()
  tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
  safetensors.numpy.save_file(tensors, tmp_path / "c.safetensors")
  with pytest.raises(ValueError, match="it is not of `cmjax convert --export`"):
    models.read(tmp_path / "c.safetensors")


# --- those that cmjax brings ----------------------------------------------------------------------


def test_the_models_that_come_along_are_small_and_say_how_they_were_made():
  assert models.names() == NAMES
  for name in NAMES:
    stored = models.read(name)
    size = stored.path.stat().st_size
    assert size < 2_000_000 and stored.card["bytes"] == size
    assert {array.dtype for array in stored.found.tensors.values()} == {np.dtype("float16")}
    assert sum(a.size for a in stored.found.tensors.values()) == stored.card["parameters"]
    assert stored.record["net"]["num_classes"] == 10
    commands = "\n".join(stored.card["commands"])
    assert "cmjax convert --export" in commands and "--dtype=float16" in commands
    scores = stored.card["scores"]
    assert stored.card["sampler"] in scores["float16"]
    assert set(scores["float16"]) == set(scores["float32"]) == set(stored.record["samplers"])


def test_clothes_have_names_and_digits_are_their_own():
  assert models.read("digits").class_names == ()
  names = models.read("fashion_mnist").class_names
  assert (len(names), names[0], names[-1]) == (10, "T-shirt", "Boot")


def test_a_model_that_was_changed_is_not_the_one_its_card_is_of(tmp_path, monkeypatch):
  for file in models.FOLDER.glob("digits.*"):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  monkeypatch.setattr(models, "FOLDER", tmp_path)
  assert (
    models.read("digits").card["sha256"]
    == hashlib.sha256((tmp_path / "digits.safetensors").read_bytes()).hexdigest()
  )
  data = bytearray((tmp_path / "digits.safetensors").read_bytes())
  data[-1] ^= 1
  (tmp_path / "digits.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="is not the file that its card is of: install cmjax again"):
    models.read("digits")


def test_a_model_draws_into_a_folder_of_its_name_by_its_name_alone(
  tmp_path, monkeypatch, capsys, caplog
):
  caplog.set_level(logging.INFO, logger="cmjax")
  monkeypatch.chdir(tmp_path)
  arguments = ("sample", "digits", "--num_samples=20", "--compile_cache=")
  code, out, err = in_process.answer(capsys, lambda: in_process.verb(*arguments))
  assert code == 0, err
  made = out.split()
  assert [path.removeprefix(f"{tmp_path}/") for path in made] == [
    "samples/digits/two_step_seed0.png", "samples/digits/two_step_seed0.npz"
  ]  # fmt: skip
  assert any(message.startswith("digits: ") for message in caplog.messages)
  with np.load(made[1]) as found:
    images, labels = found["arr_0"], found["arr_1"]
  assert images.shape == (20, 8, 8, 1) and labels.tolist() == [*range(10)] * 2
  # Digits, and of the class that was asked for: nearest to the mean of that class of the data.
  from cmjax.data import sources

  data, classes = sources.as_array(sources.digits())
  means = np.stack([data[classes == label].mean(axis=0) for label in range(10)])
  away = np.sum((images[:, None].astype(float) - means[None]) ** 2, axis=(2, 3, 4))
  assert np.mean(np.argmin(away, axis=1) == labels) >= 0.8


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["digit"], "There is no model 'digit'. Did you mean digits? A file of your own ends in .saf"),
    (["a.safetensors"], "There is no model 'a.safetensors'. cmjax's own are: digits, fashion_mni"),
    (["digits", "--config=digits_sct"], "--config=digits_sct: a model has its own config. Drop"),
    (["digits", "--workdir=x"], "cmjax sample takes one of --workdir and --model, got both."),
    (["digits", "--ema=main"], "--ema=main: a model in one file is one average. Drop --ema."),
    (["digits", "--sampler=heun"], "'heun'. Choose from: "),
    (["digits", "fashion_mnist"], "Unknown arguments ['fashion_mnist']: options begin with --."),
  ],
)
def test_what_cannot_be_drawn_from_a_model_is_one_line(
  arguments, told, monkeypatch, tmp_path, capsys
):
  monkeypatch.chdir(tmp_path)
  run = lambda: in_process.verb("sample", *arguments, "--compile_cache=")
  code, out, err = in_process.answer(capsys, run)
  assert (code, out) == (1, "")
  assert told in err and err.count("cmjax: ") == 1 and not list(tmp_path.iterdir())
