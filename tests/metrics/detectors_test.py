"""Detectors: what their outputs are, what they may depend on, and the way of their weights."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.base import sharding
from cmjax.commands import detectors as command
from cmjax.metrics import detectors
from cmjax.metrics.detectors import published_weights, weights
from cmjax.metrics.detectors.layers import BatchNorm, Conv, Linear
from cmjax.metrics.detectors.network import Input, Pretrained, forward, prepare, shapes
from helpers import foreign_files
from helpers.detector_weights import random_weights


class Tiny(nnx.Module):
  def __init__(self):
    self.conv = Conv(3, 6, (3, 3), stride=2, padding="SAME", use_bias=True)
    self.bn = BatchNorm(6, eps=1e-3)
    self.fc = Linear(6, 4)

  def __call__(self, x):
    x = jax.nn.relu(self.bn(self.conv(x)))
    features = x.mean((1, 2))
    return features, x[:, :2, :2].reshape(len(x), -1), self.fc(features)


TINY = Pretrained(
  score="FD-Tiny",
  dim=6,
  module=Tiny,
  inputs={
    "plain": Input(9, "half_pixel_bilinear", (127.5,), (127.5,)),
    "imagenet": Input(9, "pil_bicubic_uint8", (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)),
  },
  others="num_batches_tracked$",
  origin="a file of this test",
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
  """The path of weights of the detector "tiny"."""
  monkeypatch.setitem(detectors.DETECTORS, "tiny", TINY)
  weights.write(tmp_path / "tiny.npz", random_weights(Tiny))
  return tmp_path / "tiny.npz"


def images(n, height=12, width=10, channels=3, seed=0):
  shape = (n, height, width, channels)
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_outputs_are_the_networks_of_resized_and_normalised_images(tiny):
  detector = detectors.load("tiny", tiny, batch_size=4)
  x = images(3, 9, 9)  # of its size: resizing changes nothing
  state = random_weights(Tiny)
  window = np.lib.stride_tricks.sliding_window_view
  z = np.pad((x / 127.5 - 1).astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  h = np.einsum("nhwcij,ocij->nhwo", window(z, (3, 3), (1, 2))[:, ::2, ::2], state["conv.weight"])
  h = (h + state["conv.bias"] - state["bn.running_mean"]) / np.sqrt(state["bn.running_var"] + 1e-3)
  h = np.maximum(h * state["bn.weight"] + state["bn.bias"], 0)
  features = h.mean((1, 2))
  outputs = detector.apply(x)
  np.testing.assert_allclose(outputs.features, features, rtol=1e-5)
  np.testing.assert_allclose(outputs.spatial, h[:, :2, :2].reshape(3, -1), rtol=1e-4, atol=1e-5)
  logits = features @ state["fc.weight"].T + state["fc.bias"]
  np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)
  assert {a.dtype for a in outputs} == {np.dtype(np.float32)}
  assert (detector.name, detector.score, detector.dim) == ("tiny", "FD-Tiny", 6)


@pytest.mark.parametrize("variant", TINY.inputs)
def test_outputs_of_an_image_do_not_depend_on_the_others_nor_on_how_many_there_are(tiny, variant):
  detector = detectors.load("tiny", tiny, variant=variant, batch_size=4)
  x = images(11)
  together = detector.apply(x)
  for cut in (1, 4, 5):
    parts = [detector.apply(x[:cut]), detector.apply(x[cut:])]
    for whole, *halves in zip(together, *parts, strict=True):
      np.testing.assert_array_equal(whole, np.concatenate(halves))


@pytest.mark.parametrize("variant", TINY.inputs)
def test_grey_images_are_those_with_the_channel_three_times(tiny, variant):
  detector = detectors.load("tiny", tiny, variant=variant, batch_size=4)
  grey = images(5, channels=1)
  for a, b in zip(detector.apply(grey), detector.apply(np.repeat(grey, 3, -1)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.devices
def test_a_mesh_of_eight_devices_gives_what_one_does(tiny):
  x = images(21)
  one = detectors.load("tiny", tiny, batch_size=2)
  eight = detectors.load("tiny", tiny, batch_size=2, mesh=sharding.make_mesh(fsdp=2))
  for a, b in zip(one.apply(x), eight.apply(x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_normalisation_is_channel_by_channel_and_clips_where_it_says():
  x = jnp.asarray(images(2, 4, 4))
  given = Input(4, "pil_bicubic", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
  expected = (np.asarray(x, np.float64) - [1, 2, 3]) / [4, 5, 6]
  np.testing.assert_allclose(prepare(x, given), expected, rtol=1e-5, atol=1e-5)
  edge = jnp.asarray(np.repeat(np.uint8([[0, 255], [0, 255]])[None, ..., None], 3, -1))
  overshoot = given._replace(size=16, mean=(0.0,), std=(1.0,))
  assert prepare(edge, overshoot).max() > 256 and prepare(edge, overshoot).min() < -1
  clipped = prepare(edge, overshoot._replace(clip=True))
  assert clipped.max() == 255 and clipped.min() == 0


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
          yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", detectors.DETECTORS)
def test_every_product_and_convolution_is_in_float32_at_the_highest_precision(name):
  pretrained = detectors.DETECTORS[name]
  spec = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  size = next(iter(pretrained.inputs.values())).size
  state = {key: spec(shape) for key, shape in shapes(pretrained.module).items()}
  jaxpr = jax.make_jaxpr(forward(pretrained.module))(state, spec((1, size, size, 3)))
  found = [
    eqn
    for eqn in equations(jaxpr.jaxpr)
    if eqn.primitive.name in ("dot_general", "conv_general_dilated")
  ]
  assert len(found) > 30  # the layers, but for the depthwise ones, which are sums
  for eqn in found:
    assert set(eqn.params["precision"]) == {jax.lax.Precision.HIGHEST}, eqn
    assert all(v.aval.dtype == jnp.float32 for v in (*eqn.invars, *eqn.outvars)), eqn
  features = jaxpr.out_avals[0]
  assert features.shape == (1, pretrained.dim) and features.dtype == jnp.float32
  if name == "inception":
    assert [a.shape for a in jaxpr.out_avals] == [(1, 2048), (1, 2023), (1, 1008)]


def test_only_inceptions_score_is_called_fid():
  scores = {name: pretrained.score for name, pretrained in detectors.DETECTORS.items()}
  assert scores == {
    "inception": "FID", "dinov2": "FD-DINOv2", "efficientnet_lite0": "FD-ELite0",
  }  # fmt: skip


# --- the record ---------------------------------------------------------------------------------


def test_record_says_for_json_what_a_score_must_be_told_with(tiny):
  record = detectors.load("tiny", tiny, variant="imagenet").record
  digest = record.pop("weights_sha256")
  assert re.fullmatch("[0-9a-f]{64}", digest)
  assert json.loads(json.dumps(record)) == {
    "name": "tiny",
    "variant": "imagenet",
    "resize": "pil_bicubic_uint8 to 9",
    "normalisation": "(pixel - [120, 110, 100]) / [60, 50, 40]",
    "precision": "float32, products and convolutions at the highest",
  }


def test_digest_is_of_the_weights_and_not_of_the_file(tiny, tmp_path):
  state = random_weights(Tiny)
  digest = lambda path: detectors.load("tiny", path).record["weights_sha256"]
  turned = {name: state[name] for name in reversed(state)} | {"bn.num_batches_tracked": np.int64(3)}
  np.savez_compressed(tmp_path / "other.npz", **turned)
  assert digest(tmp_path / "other.npz") == digest(tiny)
  state["fc.bias"][0] += 1e-6
  np.savez(tmp_path / "changed.npz", **state)
  assert digest(tmp_path / "changed.npz") != digest(tiny)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("inceptionv3",), "Unknown detector 'inceptionv3'. Choose from: inception, dinov2"),
    (("inception", "legacy"), "Unknown variant 'legacy' of inception. Choose from: tf_legacy, pyt"),
  ],
)
def test_unknown_detectors_and_variants_are_refused(arguments, message):
  name, *variant = arguments
  with pytest.raises(ValueError, match=message):
    detectors.load(name, "no.npz", variant=variant[0] if variant else None)


def changed(change):
  state = random_weights(Tiny)
  change(state)
  return state


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda s: s.pop("fc.bias"), r"fc.bias is missing, expected \[4\]"),
    (lambda s: s.update({"fc.bias": np.zeros(5, "f")}), r"fc.bias is \[5\], expected \[4\]"),
    (lambda s: s.update({"fc.bias": np.zeros(4, int)}), "fc.bias is int64, expected floating"),
    (lambda s: s.update({"fc.bias": np.full(4, np.nan, "f")}), "fc.bias has values that are not"),
    (lambda s: s.update({"head.w": np.zeros((2, 3), "f")}), r"head.w \[2, 3\] is not in this"),
  ],
)
def test_weights_that_do_not_fit_are_named(tiny, tmp_path, change, message):
  np.savez(tmp_path / "bad.npz", **changed(change))
  with pytest.raises(ValueError, match=rf"bad.npz: .*{message}.*a file of this test"):
    detectors.load("tiny", tmp_path / "bad.npz")


def test_files_that_are_no_weights_are_refused_with_the_command(tiny, tmp_path):
  advice = "python -m cmjax.metrics.detectors FILE --to OUT.npz"
  with pytest.raises(ValueError, match=f"There are no weights at .*{advice}"):
    detectors.load("tiny", tmp_path / "nowhere.npz")
  (tmp_path / "inception.pth").write_bytes(foreign_files.torch_legacy(random_weights(Tiny)))
  with pytest.raises(ValueError, match=f"inception.pth is no .npz of weights: .*{advice}"):
    detectors.load("tiny", tmp_path / "inception.pth")
  np.save(tmp_path / "one.npy", np.zeros(3))
  with pytest.raises(ValueError, match="one.npy is no .npz of weights: it is one array"):
    detectors.load("tiny", tmp_path / "one.npy")
  with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
    detectors.load("tiny", tiny, batch_size=0)


@pytest.mark.parametrize(
  "bad",
  [
    images(2).astype(np.float32),
    images(2)[0],
    images(2, channels=2),
    images(2)[:0],
    np.asarray(images(2)).tolist(),
  ],
)
def test_images_of_another_kind_are_refused(tiny, bad):
  detector = detectors.load("tiny", tiny)
  with pytest.raises(ValueError, match=r"takes uint8 images \[n, h, w, c\].* got .*Round floats"):
    detector.apply(bad)


# --- the converter ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [foreign_files.torch_zip, foreign_files.torch_legacy])
def test_a_file_of_pytorch_becomes_the_weights_that_load_reads(tiny, tmp_path, capsys, kind):
  state = random_weights(Tiny)
  arrays = {**state, "bn.num_batches_tracked": np.array(7, np.int64)}
  (tmp_path / "weights.pth").write_bytes(kind(arrays))
  target = tmp_path / "out" / "converted.npz"
  assert command.main([str(tmp_path / "weights.pth"), "--to", str(target)]) == 0
  said = capsys.readouterr().out
  with np.load(target, allow_pickle=False) as file:
    assert set(file) == set(state)
    for name, array in state.items():
      np.testing.assert_array_equal(file[name], array)
  assert "tiny, 8 tensors" in said
  assert detectors.load("tiny", target).record["weights_sha256"] in said
  assert command.main([str(tmp_path / "weights.pth"), "--to", str(target)]) == 1
  assert "exists: choose another name" in capsys.readouterr().err


def test_half_precision_weights_become_float32(tiny, tmp_path):
  halves = {name: a.astype(np.float16) for name, a in random_weights(Tiny).items()}
  (tmp_path / "half.pth").write_bytes(foreign_files.torch_zip(halves))
  published_weights.convert(tmp_path / "half.pth", tmp_path / "half.npz")
  with np.load(tmp_path / "half.npz", allow_pickle=False) as file:
    for name, array in halves.items():
      assert file[name].dtype == np.float32
      np.testing.assert_array_equal(file[name], array)


@pytest.mark.parametrize(
  "arrays, message",
  [
    (changed(lambda s: s.update(fc_bias=s.pop("fc.bias"))), "as tiny, .*fc.bias is missing"),
    ({f"layer{i}.weight": np.zeros(3, "f") for i in range(9)}, "of none of the detectors: .*2015"),
  ],
)
def test_a_file_that_does_not_fit_writes_nothing(tiny, tmp_path, capsys, arrays, message):
  (tmp_path / "weights.pth").write_bytes(foreign_files.torch_zip(arrays))
  target = tmp_path / "converted.npz"
  assert command.main([str(tmp_path / "weights.pth"), "--to", str(target)]) == 1
  assert re.search(message, capsys.readouterr().err) and not target.exists()


def test_torchvisions_inception_is_not_taken_for_that_of_the_fid(tmp_path):
  arrays = {
    name: np.zeros((1, *[1] * (len(shape) - 1)), "f")
    for name, shape in shapes(detectors.DETECTORS["inception"].module).items()
  }
  arrays["fc.weight"], arrays["fc.bias"] = np.zeros((1000, 2048), "f"), np.zeros(1000, "f")
  (tmp_path / "inception_v3.pth").write_bytes(foreign_files.torch_zip(arrays))
  with pytest.raises(ValueError, match="as inception, .*not torchvision's"):
    published_weights.convert(tmp_path / "inception_v3.pth", tmp_path / "out.npz")
