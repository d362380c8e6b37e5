"""EDM2's latents, mean and std in .npy files, as a prepared set."""

import io
import json
import re
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import experiment, latents
from cmjax.commands import prepare
from cmjax.data import pipeline, records
from helpers import prepared_sets, small_autoencoder

RNG = np.random.default_rng(0)
MEAN = RNG.normal(0, 5, (6, 4, 4, 4)).astype(np.float32)  # [n, c, h, w]
STD = RNG.uniform(0.1, 0.5, MEAN.shape).astype(np.float32)
LABELS = [2, 0, 1, 2, 2, 0]
NAMES = [f"00000/img-mean-std-{i:08d}.npy" for i in range(6)]


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def write(path, raw, names=NAMES, labels=LABELS):
  """A zip as EDM2's dataset tool writes it."""
  pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
  with zipfile.ZipFile(path, "w") as file:
    for name, array in zip(names, raw, strict=True):
      file.writestr(name, array if isinstance(array, bytes) else npy(array))
    file.writestr("dataset.json", json.dumps({"labels": pairs}))
  return path


RAW = np.concatenate([MEAN, STD], axis=1)


def run(*args):
  return prepare.main([*map(str, args), "--workers=0"])


@pytest.mark.parametrize("folder", [False, True])
def test_they_are_those_of_the_file_by_the_convention_of_edm2(tmp_path, folder):
  source = write(tmp_path / "edm2.zip", RAW)
  if folder:
    zipfile.ZipFile(source).extractall(tmp_path / "edm2")
    source = tmp_path / "edm2"
  assert run(source, "--out", tmp_path / "set", "--moments") == 0
  data = records.records(tmp_path / "set")
  assert (data.num_classes, data.latents["name"]) == (3, "edm2")
  found = data.take(np.arange(6))
  scale = 0.5 / np.array(latents.EDM2.std)
  mean = (MEAN.transpose(0, 2, 3, 1) - np.array(latents.EDM2.mean)) * scale
  np.testing.assert_allclose(found["image"], mean, atol=1e-6)
  np.testing.assert_allclose(found["image_std"], STD.transpose(0, 2, 3, 1) * scale, atol=1e-7)
  assert found["label"].tolist() == LABELS
  config = prepared_sets.config(tmp_path / "set", "edm2")
  made = experiment.parse(config)
  batch = pipeline.dataset(made.source("train"), batch_size=3, seed=0)[0]
  assert batch["image"].shape == batch["image_std"].shape == (3, 4, 4, 4)


def test_they_are_what_the_autoencoder_makes_of_the_images(tmp_path):
  """EDM2's tool gives it x / 255 and writes what it says, unscaled."""
  vae, _, params = small_autoencoder.small()
  images = RNG.integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
  raw = [np.asarray(part).transpose(0, 3, 1, 2) for part in vae.encode(params, images / 255)]
  run(write(tmp_path / "a.zip", np.concatenate(raw, 1), NAMES[:2], None), "--moments",
      "--out", tmp_path / "set")  # fmt: skip
  found = records.records(tmp_path / "set").take(np.arange(2))
  encode = lambda x: vae.encode(params, x)
  wanted = latents.moments(encode, jnp.asarray(images / 127.5 - 1), latents.EDM2)
  for name, array in zip(("image", "image_std"), wanted, strict=True):
    np.testing.assert_allclose(found[name], array, atol=2e-5)


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (RAW[0, :7], r"float32 \[7, 4, 4\], not floats \[2 c, h, w\]"),
    (RAW[0, 0], r"not floats \[2 c, h, w\]"),
    ((255 * RAW[0]).astype(np.uint8), "uint8"),
    (RAW[0] * np.nan, "not finite"),
    (-np.abs(RAW[0]), "a std below 0"),
    (npy(RAW[0])[:-9], "says that it is"),
    (b"", "Cannot read"),
    (npy(np.array([None])), "Object arrays"),
    (npy(RAW[0]).replace(b"(8, 4, 4)", b"(8, 4,99)"), "says that it is"),
  ],
)
def test_a_file_that_is_no_such_latent_is_one_line(tmp_path, capsys, array, message):
  source = write(tmp_path / "a.zip", [*RAW[:2], array], NAMES[:3], LABELS[:3])
  assert run(source, "--out", tmp_path / "set", "--moments") == 1
  said = capsys.readouterr().err
  assert re.search(message, said) and "00000002.npy" in said and "Traceback" not in said


def test_latents_of_other_channels_and_pictures_are_told_where_to_go(tmp_path, capsys):
  write(tmp_path / "a.zip", np.abs(RAW[:, :6]))
  assert run(tmp_path / "a.zip", "--out", tmp_path / "set", "--moments") == 1
  assert "6 channels" in capsys.readouterr().err
  assert run(tmp_path / "a.zip", "--out", tmp_path / "set") == 1
  assert "cmjax prepare --moments" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    run(tmp_path / "a.zip", "--out", tmp_path / "set", "--moments", "--convention=scm")
  assert "leave out --convention" in capsys.readouterr().err
