"""Runs on latents whose samples are looked at and scored as images."""

import json

import jax
import numpy as np
import pytest

from cmjax import experiment, latents
from cmjax.base import sharding
from cmjax.convert import autoencoder, files
from cmjax.metrics import cards, compare, frechet, rounding
from cmjax.program import identity, sample, stored_runs
from helpers import prepared_sets, small_autoencoder
from helpers.prepared_sets import RNG, latent_arrays, write_set

pytestmark = pytest.mark.usefixtures("shared_programs")
MESH = sharding.make_mesh(devices=jax.local_devices())
ONE = sharding.make_mesh()


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """The file of a small autoencoder: images of 8x8 have latents of 4x4."""
  path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
  autoencoder.write(path, small_autoencoder.small()[2])
  return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, vae):
  """A set of latents with a held-out split."""
  path = tmp_path_factory.mktemp("data") / "latents"
  recorded = latents.record() | {"vae_sha256": files.digest(vae)}
  for split, num in (("train", 300), ("test", 250)):
    write_set(path, latent_arrays(num), split=split, num_classes=10, recorded=recorded)
  return path


def configure(data, vae, **fd):
  c = prepared_sets.config(data).unlock()
  c.data.records.vae = vae and str(vae)
  c.samplers = dict(one_step=dict(name="consistency"))
  common = dict(samplers=("one_step",), emas=("main",), every_steps=1)
  c.evals = dict(
    grid=dict(name="samples", num_samples=6, **common),
    fd=dict(name="frechet", features="pixels", num_samples=250, batch_size=100, **common, **fd),
  )
  return c


def given(data, vae, **fd):
  """The experiment of `configure`."""
  return experiment.parse(configure(data, vae, **fd))


def by_hand(vae, z):
  """Images of latents by the autoencoder alone."""
  made, params = autoencoder.load(vae)
  with jax.default_matmul_precision("highest"):
    decode = jax.jit(lambda params, z: latents.decode(lambda x: made.decode(params, x), z))
    return np.asarray(decode(params, z))


def moments(images):
  return frechet.moments(rounding.to_uint8(images, "round").reshape(len(images), -1) / 255)


@pytest.mark.slow
def test_a_decoder_makes_the_images_of_its_file_on_any_devices(data, vae):
  z = RNG.normal(0, 0.5, (19, 4, 4, 4)).astype(np.float32)
  for mesh in (MESH, None):
    made = experiment.decoder(given(data, vae).samples, mesh)
    assert made.shape == (8, 8, 3)
    assert made.record == {"convention": "scm", "vae_sha256": files.digest(vae)}
    np.testing.assert_allclose(made.decode(z), by_hand(vae, z), rtol=1e-4, atol=1e-5)
    assert made.decode(z[:0]).shape == (0, 8, 8, 3)  # a process may have none of few samples
  c = configure(data, vae)
  c.net.in_channels = 5
  with pytest.raises(ValueError, match="'scm' is for latents of 4 channels; got"):
    experiment.decoder(experiment.parse(c).samples)


@pytest.mark.slow  # a sampler and a detector to compile, twice
def test_samples_that_are_latents_are_drawn_and_scored_as_images(data, vae):
  e = given(data, vae)
  start = jax.device_get(jax.jit(e.network.init)(jax.random.key(0)))
  params = jax.tree.map(lambda a: a + np.float32(0.1), start)
  key, made = jax.random.key(3), experiment.open_evaluators(e, ONE)
  assert set(made) == {"grid", "fd"}
  z = experiment.compiled_sampler(e, "one_step", ONE)(params, key, np.arange(250))[1]
  images = by_hand(vae, z)
  (shown,) = [x for _, x in made["grid"]({"main": params}, key)]
  np.testing.assert_allclose(shown, np.clip(images[:6], -1, 1), atol=1e-4)
  found = dict(made["fd"]({"main": params}, key))
  means = lambda split, num: experiment.opened(e, split).take(np.arange(num))["image"]
  train_z, test_z = means("train", 300), means("test", 250)
  real = moments(by_hand(vae, train_z))
  assert found["one_step/main"] == pytest.approx(frechet.distance(moments(images), real), rel=1e-3)
  floor = frechet.distance(moments(by_hand(vae, test_z)), real)
  assert found["floor"] == pytest.approx(floor, rel=1e-3)
  card = json.loads(json.dumps(found["one_step_main"]))
  assert card["decoder"] == {"convention": "scm", "vae_sha256": files.digest(vae)}
  other = card | {"decoder": {"convention": "edm2"}}
  assert compare.incomparable(card, other) == []
  assert "decoder.convention: scm in A, edm2 in B" in compare.differences(card, other)


@pytest.mark.slow
def test_mode_sample_has_images_beside_the_latents(data, vae, tmp_path, monkeypatch):
  e = given(data, vae)
  params = jax.jit(e.network.init)(jax.random.key(0))
  trained = stored_runs.Trained(experiment.describe(e.record), {"main": params}, 7)
  monkeypatch.setattr(stored_runs, "load_network", lambda *_, **__: trained)
  draw = lambda e: sample.sample(e, tmp_path, num_samples=5, name=None, seed=0, ema="main")
  picture, arrays = draw(e)
  with np.load(arrays) as file:
    expected = rounding.to_uint8(by_hand(vae, file["samples"]), "round")
    assert np.abs(file["arr_0"].astype(int) - expected).max() <= 1
    assert file["samples"].shape == (5, 4, 4, 4)
  assert picture.suffix == ".png" and picture.is_file()
  picture.unlink()
  (arrays,) = draw(given(data, None))
  with np.load(arrays) as file:
    assert file.files == ["samples"]
  assert not picture.exists()


def test_given_images_and_given_latents_are_scored(data, vae, tmp_path):
  e = given(data, vae, floor=False)
  z = RNG.normal(0, 0.5, (250, 4, 4, 4)).astype(np.float32)
  np.savez(tmp_path / "latents.npz", samples=z)
  images = rounding.to_uint8(by_hand(vae, z), "round")
  np.savez(tmp_path / "both.npz", samples=z, images=images)
  np.savez(tmp_path / "drawn.npz", samples=z, arr_0=images)  # as mode sample has them
  score = lambda name: cards.read(
    sample.evaluate_images(e, tmp_path / "w", tmp_path / name).partition(": ")[0]
  )
  a, b = score("latents.npz"), score("both.npz")
  assert score("drawn.npz")["values"] == b["values"]
  assert a["values"]["frechet"] == pytest.approx(b["values"]["frechet"], rel=1e-3)
  assert (a["rounding"], b["rounding"]) == ("round", cards.GIVEN)
  np.savez(tmp_path / "other.npz", images=np.zeros((250, 4, 4, 3), np.uint8))
  with pytest.raises(ValueError, match=r"are \[4, 4, 3\], those of config.data \[8, 8, 3\]"):
    score("other.npz")


def test_what_needs_a_file_is_off_without_and_says_so(data, caplog):
  c = configure(data, None)
  c.evals.fd.update(features="inception", weights=None)
  with caplog.at_level("INFO", "cmjax"):
    assert experiment.open_evaluators(experiment.parse(c), MESH) == {}
  assert "evals.grid is off, since data.records.vae is None: name a file" in caplog.text
  assert "evals.fd is off, since evals.fd.weights is None: name a file" in caplog.text
  del c.evals.fd["weights"]
  with pytest.raises(ValueError, match="need evals.fd.weights, the file of them"):
    experiment.open_evaluators(experiment.parse(c), MESH)


def test_scores_of_latents_need_an_autoencoder_and_the_right_one(data, vae, tmp_path):
  with pytest.raises(ValueError, match=r"float32 \[4, 4, 4\]. Of latents: name the autoencoder"):
    experiment.scorer(given(data, None), "fd", MESH)
  other = tmp_path / "other.safetensors"
  autoencoder.write(
    other, jax.tree.map(lambda a: a + 1, small_autoencoder.small()[2])
  )  # fmt: skip
  with pytest.raises(ValueError, match=r"were made by an autoencoder of .*Name that file"):
    experiment.opened(given(data, other))
  with pytest.raises(ValueError, match="there is no such file. Give the SD-VAE's"):
    experiment.opened(given(data, tmp_path / "none.safetensors"))
  c = configure(data, vae)
  c.data.records.latents = None
  with pytest.raises(ValueError, match="but data.records.latents is None: drop one"):
    experiment.decoder(experiment.parse(c).samples, MESH)


def test_the_autoencoder_may_be_named_later(data, vae):
  ours, theirs = (given(data, file).record for file in (vae, None))
  assert identity.digest(ours) == identity.digest(theirs)
