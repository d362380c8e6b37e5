"""Every page of configs/ is whole, builds, and takes its smoke steps."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cmjax import experiment, latents
from cmjax.base import sharding
from cmjax.data import manifest, shards
from cmjax.program import train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load(name, variant=""):
  config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
  config.mesh = dict(data=1, fsdp=1)
  return config.lock()


@pytest.fixture
def one_device(monkeypatch):
  monkeypatch.setattr(jax, "devices", lambda *args: jax.local_devices()[:1])


@pytest.fixture
def images():
  with tfds.testing.mock_data(num_examples=16):
    yield


def prepared(path, config):
  """A prepared set of a few images, or latents, of the config's shape."""
  shape = (config.net.resolution,) * 2 + (config.net.in_channels,)
  convention = config.data.records.get("latents")
  recorded = latents.record(latents.CONVENTIONS[convention]) if convention else None
  layout = shards.Layout(shape, "float32" if convention else "uint8", bool(convention))
  zeros = np.zeros((2, *shape), layout.dtype)
  arrays = {"image": zeros, "image_std": zeros, "label": np.array([0, 1])}
  folder, name = path / "train", shards.name("train", 0, 1)
  folder.mkdir()
  shard = manifest.Shard(name=name, **shards.write(folder / name, layout.pack(arrays)))
  classes = tuple(str(i) for i in range(config.net.num_classes))
  manifest.write(folder, manifest.Manifest("train", layout, classes, recorded, (shard,), {}))
  return str(path)


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_all_its_parts(name, variant, one_device, images, tmp_path):
  config = load(name, variant)
  if config.data.name == "records":
    config.data.records.path = prepared(tmp_path, config)
  net = experiment.network(config)
  state = jax.eval_shape(experiment.state_init(config, net), jax.random.key(0))
  target = {"target"} if experiment.target_name(config) else set()
  assert set(state.ema) == set(config.ema) | target
  assert len(experiment.source(config)) > 0
  assert float(experiment.schedule(config)(jnp.int32(10**6))) > 0
  scored = config.evals.get("fid")  # off in a page: its files are the user's
  evaluators = experiment.evaluators(config, net, sharding.make_mesh(1, 1))
  off = ({"fid"} if scored else set()) | (
    {"grid"} if experiment.latent_convention(config) else set()
  )
  assert set(evaluators) == set(config.evals) - off
  if scored and not experiment.latent_convention(config):  # all else about it is right
    config.unlock()
    del scored["weights"], scored["variant"]
    scored.features = "pixels"
    assert "fid" in experiment.evaluators(config, net, sharding.make_mesh(1, 1))
  needs_teacher = config.loss.name in ("scd", "cd", "cd_continuous")
  assert bool(config.teacher.workdir) == needs_teacher
  teacher = (net, state.params["net"]) if needs_teacher else None
  assert callable(experiment.loss(config, net, teacher))


def test_the_cifar10_networks_are_the_published_ones(images):
  for name in ("cifar10_teacher", "cifar10_sct", "cifar10_scd"):
    config = load(name)
    params = jax.eval_shape(experiment.network(config).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 60_067_715
    assert config.batch_size == 512 and config.total_steps == 400_000


@pytest.mark.parametrize(
  "size, millions", [("s", 280.2), ("m", 497.8), ("l", 777.5), ("xl", 1119.3), ("xxl", 1523.2)]
)
def test_the_networks_on_latents_are_the_published_ones_and_what_scm_adds(size, millions):
  config = load("imagenet512_scd", size)
  # The paper's counts are of EDM2's own modulation, with one number a channel, and its logvar.
  config.unlock().net.update(modulation="edm2", guidance=False)
  params = jax.eval_shape(experiment.network(config).init, jax.random.key(0))
  number = sum(x.size for x in jax.tree.leaves(params))
  assert round(number / 1e6, 1) == millions


def test_a_size_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match="Unknown variant 'xxs'. Choose from: smoke, s, m, l, xl"):
    load("imagenet512_scd", "xxs")


@pytest.mark.slow
def test_cifar10_sct_takes_its_smoke_steps_on_mock_images(tmp_path, one_device, images):
  config = load("cifar10_sct", "smoke")
  train.train(config, tmp_path)
  assert (tmp_path / "checkpoints" / str(config.total_steps)).is_dir()
  assert (tmp_path / "samples" / f"two_step_main_{config.total_steps:08d}.png").exists()
  assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_the_plane_takes_its_smoke_steps(tmp_path, one_device):
  scores = train.train(load("toy2d_sct", "smoke"), tmp_path)
  assert scores["swd/two_step/main"] > scores["swd/floor"] > 0  # ten steps do not make a model


@pytest.mark.slow  # `make quickstart` runs both in earnest
def test_digits_take_their_smoke_steps(tmp_path, one_device):
  scores = train.train(load("digits_teacher", "smoke"), tmp_path / "teacher")
  assert scores["fd/heun/main"] > scores["fd/floor"] > 0 and scores["speed/heun"] > 0
  config = load("digits_scd", "smoke")
  config.teacher.workdir = config.init_from.workdir = str(tmp_path / "teacher")
  scores = train.train(config, tmp_path / "scd")
  assert scores["fd/one_step/main"] > scores["fd/floor"] > 0
