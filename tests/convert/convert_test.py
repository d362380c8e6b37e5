"""The bridge to other people's checkpoints: what is read is what was written, and it runs."""

import collections
import contextlib
import functools
import io
import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import ml_collections as mlc
import ml_dtypes
import numpy as np
import pytest
import safetensors
from etils import epath
from flax import serialization

from cmjax import experiment
from cmjax.base import lock, sharding
from cmjax.commands import convert as command
from cmjax.convert import detect, files, jcm, names, pickles, tensors
from cmjax.experiment import models
from cmjax.program import convert, sample, stored_runs
from cmjax.run import checkpoint, commit
from helpers import foreign_files as ff
from helpers import tiny

SIGMA_DATA = 0.5
# Every setting that a file says or shows, so that what is read from one is a network that is there.
COMMON = dict(
  resolution=8, in_channels=3, num_blocks=1, attn_resolutions=(4,), embed_mult=4, dropout=0.25,
  dtype="float32",
)  # fmt: skip
PLAIN = dict(noise_mult=1, encoder="standard", fir=(1, 1))
NETS = {
  "ddpmpp": PLAIN | dict(
    name="ddpmpp", channels=8, channel_mult=(1, 2), num_classes=3, augment_dim=9,
    modulation="additive", embedding="positional",
  ),
  "ncsnpp": dict(
    name="ddpmpp", channels=8, channel_mult=(1, 2), num_classes=0, augment_dim=0,
    modulation="additive", embedding="fourier", noise_mult=2, fir=(1, 3, 3, 1), encoder="residual",
  ),
  "adm": dict(
    name="adm", channels=16, channel_mult=(1, 4), num_classes=5, augment_dim=0,
    modulation="scale_shift", embedding="positional",
  ),
  "edm2": dict(
    name="edm2", channels=16, channel_mult=(1, 4), num_classes=5, modulation="edm2",
    embedding="mp_fourier",
  ),
}  # fmt: skip


def net_config(name, **changes):
  net = COMMON | NETS[name] | {"preconditioning": "edm"} | changes
  return mlc.ConfigDict({"net": net, "sigma_data": SIGMA_DATA})


def network(name, **changes):
  return models.network(net_config(name, **changes).net, SIGMA_DATA)


def random_like(shapes, seed=0, scale=1.0):
  draw = np.random.default_rng(seed).normal
  return jax.tree.map(lambda a: draw(scale=scale, size=a.shape).astype("f4"), shapes)


@functools.cache
def shapes_of(name, **changes):
  return jax.eval_shape(network(name, **changes).init, jax.random.key(0))


def params_of(name, **changes):
  return random_like(shapes_of(name, **changes))


def state_of(name, params):
  """The state_dict that the network's PyTorch module would have."""
  net = NETS[name]
  state = names.to_torch(params, names.OF_NETWORK[net["name"]], fir=net.get("fir", (1, 1)))
  return state | (logvar() if name == "edm2" else {})


def logvar():
  draw = np.random.default_rng(5).normal
  shapes = ((128,), (128,), (1, 128))
  return {k: draw(size=s).astype("f4") for k, s in zip(convert.LOGVAR, shapes, strict=True)}


def edm_file(name, params, **kwargs):
  """The pickle of EDM's or EDM2's training."""
  said = dict(
    img_resolution=8, img_channels=3, label_dim=NETS[name].get("num_classes", 0), dropout=0.25,
    model_channels=NETS[name]["channels"], use_fp16=name == "edm2",
  )  # fmt: skip
  state, dtype = state_of(name, params), np.float16 if name == "edm2" else np.float32
  arrays = {key: array.astype(dtype) for key, array in state.items()}
  return ff.edm_pickle(arrays, "Precond" if name == "edm2" else "EDMPrecond", said, **kwargs)


def read(tmp_path, raw, name="weights.bin"):
  path = tmp_path / name
  path.write_bytes(raw)
  return files.read(path)


def only(foreign):
  (weights,) = foreign.networks.values()
  return weights


def assert_equal(got, expected):
  assert got.keys() == expected.keys()
  for name, array in expected.items():
    assert got[name].dtype == array.dtype, name
    np.testing.assert_array_equal(got[name], array, err_msg=name)


# --- files ----------------------------------------------------------------------------------------


def some_tensors():
  draw = np.random.default_rng(1).normal
  dtypes = ("f4", "f2", "f8", "i8", "i4", "u1", "?", ml_dtypes.bfloat16)
  made = {f"{i}.weight": (9 * draw(size=(3, 4, 2))).astype(d) for i, d in enumerate(dtypes)}
  return made | {"gain": np.array(2.5, "f4"), "none": np.zeros((0, 3), "f4")}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["edm", "zip", "legacy", "big-endian zip", "big-endian legacy"])
def test_tensors_come_back_as_they_were_written(kind, protocol, tmp_path):
  arrays = some_tensors()
  raw = {
    "edm": lambda: ff.edm_pickle(arrays, "EDMPrecond", {}, protocol=protocol),
    "zip": lambda: ff.torch_zip(arrays, protocol=protocol),
    "legacy": lambda: ff.torch_legacy(arrays, protocol=protocol),
    "big-endian zip": lambda: ff.torch_zip(arrays, little_endian=False, protocol=protocol),
    "big-endian legacy": lambda: ff.torch_legacy(arrays, little_endian=False, protocol=protocol),
  }[kind]()
  assert_equal(only(read(tmp_path, raw)).tensors, arrays)


def test_tensors_of_the_files_without_programs_come_back(tmp_path):
  arrays = {name: a for name, a in some_tensors().items() if a.size}
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file(arrays, path)
  assert_equal(only(files.read(path)).tensors, arrays)
  nested = {"step": 3, "params_ema": {"a": {"b": arrays}}, "params": {"c": arrays}}
  foreign = read(tmp_path, serialization.msgpack_serialize(nested))
  assert_equal(
    foreign.networks["params_ema"].tensors, {f"a/b/{name}": a for name, a in arrays.items()}
  )
  assert files.choose(foreign.networks, None) == "params_ema"


def test_a_view_of_a_storage_is_read_as_one(tmp_path):
  base = np.arange(24, dtype="f4")
  views = {
    "transposed": (ff.tensor(ff.storage_id(base, "0"), (6, 4), 0, (1, 6)), base.reshape(4, 6).T),
    "part": (ff.tensor(ff.storage_id(base, "0"), (2, 3), 7, (6, 2)), base[7:].reshape(-1)[
      np.array([[0, 2, 4], [6, 8, 10]])]),
  }  # fmt: skip
  rest = {f"{i}": (ff.tensor(ff.storage_id(base, "0"), (1,), i), base[i : i + 1]) for i in range(9)}
  values = {name: made for name, (made, _) in (views | rest).items()}
  foreign = read(tmp_path, ff.torch_zip({"base": base}, values))
  assert_equal(only(foreign).tensors, {name: a for name, (_, a) in (views | rest).items()})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_pickles_is_read_as_python_reads_it(protocol):
  arrays = {
    "f4": np.arange(6, dtype="f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "scalar": np.array(2.5),
  }
  plain = {
    "set": {1, 2}, "frozen": frozenset([3]), "numpy": np.float32(3), "bytes": b"ab\xff",
    "bytearray": bytearray(b"q"), "tuple": (1, (2.5, "é"), ()), "big": 2**100, "negative": -(2**40),
    "none": None, "list": [True, False, [1]], "long": list(range(3000)), "same": [arrays["f4"]] * 2,
    "text": "x" * 1000, "empty": [{}, [], set(), b"", ""], "keys": {1: 2, (1, "a"): 3, 1.5: 4},
  }  # fmt: skip
  raw = pickle.dumps(collections.OrderedDict(arrays=arrays, plain=plain), protocol)
  got = pickles.read(io.BytesIO(raw), tensors.Budget(len(raw)))
  unwrap = lambda a: getattr(a, "value", a)
  assert_equal({k: unwrap(v) for k, v in got["arrays"].items()}, arrays)
  same = got["plain"].pop("same")
  assert same[0] is same[1]
  del plain["same"]
  assert got["plain"] == plain


def test_the_network_of_a_checkpoint_of_training_is_chosen_by_name(tmp_path):
  a, b, c = ({k: v + i for k, v in some_tensors().items() if v.dtype == "f4"} for i in range(3))
  arrays = {f"{i}{k}": v for i, part in enumerate((a, b, c)) for k, v in part.items()}
  keys = {name: str(i) for i, name in enumerate(arrays)}
  extra = {f"x{i}": np.ones(2, "f4") for i in range(8)}
  keys |= {name: str(len(keys) + i) for i, name in enumerate(extra)}
  made = lambda i, part: ff.ordered(
    {k: ff.tensor(ff.storage_id(v, keys[f"{i}{k}"]), v.shape) for k, v in part.items()}
    | {k: ff.tensor(ff.storage_id(v, keys[k]), v.shape) for k, v in extra.items()}
  )
  value = {
    "state": {"cur_nimg": 4096},
    "net": made(0, a),
    "ema": {"stds": [0.05, 0.1], "emas": [made(1, b), made(2, c)]},
    "optimizer": {
      "state": {0: {"exp_avg": ff.tensor(ff.storage_id(b["gain"], keys["1gain"]), ())}}
    },
  }
  networks = read(tmp_path, ff.torch_zip(arrays | extra, value)).networks
  assert list(networks) == ["net", "ema.emas.0", "ema.emas.1"]
  assert_equal(networks["ema.emas.1"].tensors, c | extra)
  with pytest.raises(ValueError, match="several networks; choose by --ema from: 'net', 'ema.emas"):
    files.choose(networks, None)
  with pytest.raises(ValueError, match="it has no 'other'; choose by --ema from: 'net'"):
    files.choose(networks, "other")
  assert files.choose(networks, "ema.emas.0") == "ema.emas.0"


def test_weights_become_float32_exactly_or_are_refused():
  values = np.array([0.1, -65504.0, 6e-8, 0.0], np.float16)
  got = tensors.as_float32("w", values)
  assert got.dtype == np.float32 and np.array_equal(got, values.astype("f8"))
  half = np.array([1.5, -3e38], ml_dtypes.bfloat16)
  assert np.array_equal(tensors.as_float32("w", half), half.astype("f8"))
  for bad, says in (
    (np.array([1, 2]), r"w is int64\[2\]: weights are floating-point"),
    (np.array([1.0, np.nan], "f2"), "w has 1 values that are not finite"),
    (np.array([1e300, 1.0]), "w has 1 values that are not finite in float32, of 2"),
  ):
    with pytest.raises(ValueError, match=says):
      tensors.as_float32("w", bad)


# --- which network --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_pickle_is_recognised_and_its_weights_are_those_that_went_in(name, tmp_path):
  params = params_of(name)
  weights = only(read(tmp_path, edm_file(name, params)))
  assert weights.class_name in detect.SUPPORTED
  found = detect.detect(weights)
  assert found.net == net_config(name).net.to_dict()
  made = experiment.parse(convert.run_record(found))  # takes all that was found
  got = convert._params(made, found)
  if name == "edm2":  # which stores float16
    params = jax.tree.map(lambda a: a.astype("f2").astype("f4"), params)
    head = got["weighting"]["logvar_linear"]["kernel"]
    np.testing.assert_array_equal(head, logvar()[convert.LOGVAR[2]].astype("f2").astype("f4").T)
  jax.tree.map(np.testing.assert_array_equal, got["net"], params)


# name -> (parameters and random constants, as published; the network)
PUBLISHED = {
  "CIFAR-10 DDPM++": (55_735_299, dict(
    name="ddpmpp", resolution=32, channels=128, channel_mult=(2, 2, 2), num_blocks=4,
    attn_resolutions=(16,), num_classes=10, augment_dim=9, embed_mult=4, noise_mult=1,
    modulation="additive", embedding="positional", encoder="standard", fir=(1, 1))),
  "CIFAR-10 NCSN++": (56_397_827 + 128, dict(
    name="ddpmpp", resolution=32, channels=128, channel_mult=(2, 2, 2), num_blocks=4,
    attn_resolutions=(16,), num_classes=0, augment_dim=9, embed_mult=4, noise_mult=2,
    modulation="additive", embedding="fourier", encoder="residual", fir=(1, 3, 3, 1))),
  "ImageNet-64 ADM": (295_899_267, dict(
    name="adm", resolution=64, channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3,
    attn_resolutions=(32, 16, 8), num_classes=1000, augment_dim=0, embed_mult=4,
    modulation="scale_shift", embedding="positional")),
  "EDM2-S, latents": (280_212_837 - 128 + 2 * 192, dict(
    name="edm2", resolution=64, in_channels=4, channels=192, channel_mult=(1, 2, 3, 4),
    num_blocks=3, attn_resolutions=(16, 8), num_classes=1000, embed_mult=4, modulation="edm2",
    embedding="mp_fourier")),
}  # fmt: skip


LARGE = ("ImageNet-64 ADM", "EDM2-S, latents")


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in PUBLISHED]
)
def test_a_published_network_is_recognised_from_names_and_shapes(name):
  count, net = PUBLISHED[name]
  made = models.network({"dtype": "float32", "in_channels": 3} | net, SIGMA_DATA)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  # Views of one number: no memory.
  zeros = jax.tree.map(lambda a: np.broadcast_to(np.zeros((), "f4"), a.shape), shapes)
  torch_names = names.torch_names(zeros, names.OF_NETWORK[net["name"]])
  state = {name: _torch_view(path, zeros) for name, path in torch_names.items()}
  assert sum(a.size for a in state.values()) == count
  found = detect.detect(files.Weights(state)).net
  assert {key: found[key] for key in net} == net


def _torch_view(path, params):
  for key in path.split("/"):
    params = params[key]
  axes = {4: (3, 2, 0, 1), 2: (1, 0)}
  kernel = path.endswith("kernel")
  return params.transpose(axes.get(params.ndim, range(params.ndim))) if kernel else params


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (
      lambda s: s.pop("model.enc.8x8_block0.conv1.bias"),
      "conv1.bias is missing, expected \\(8,\\)",
    ),
    (lambda s: s.pop("model.map_layer0.weight"), "map_layer0.weight is missing"),
    (lambda s: s.pop("model.enc.8x8_conv.weight"), "expected a tensor enc.RxR_conv.weight, got"),
    (
      lambda s: s.update({"model.other.weight": np.zeros(3, "f4")}),
      r"model.other.weight \(3,\) is not in this network",
    ),
    (
      lambda s: s.update({"model.enc.4x4_down.norm0.weight": np.zeros(9, "f4")}),
      r"model.enc.4x4_down.norm0.weight is \(9,\), expected \(8,\)",
    ),
    (
      lambda s: s.update({"model.enc.8x8_block0.conv1.weight": np.zeros((8, 8), "f4")}),
      r"conv1.weight is \(8, 8\), expected 4 axes",
    ),
    (
      lambda s: s.update({"model.enc.4x4_down.conv0.resample_filter": np.ones((1, 1, 2, 2), "f4")}),
      "resample_filter",
    ),
    (
      lambda s: s.update({"model.enc.8x8_block7.conv1.weight": np.zeros((8, 8, 3, 3), "f4")}),
      "enc.8x8_block1 is missing; 8x8 has 8",
    ),
    (
      lambda s: s.update({"model.enc.3x3_block0.conv1.weight": np.zeros((8, 8, 3, 3), "f4")}),
      r"blocks at \[8, 4, 3\]; expected each resolution to be half",
    ),
    (
      lambda s: s.update({"model.map_layer0.weight": np.zeros((33, 8), "f4")}),
      "map_layer0.weight has 33 rows, expected a multiple of 8",
    ),
    (
      lambda s: s.update({"model.dec.8x8_aux_conv.bias": np.zeros(3, "i8")}),
      "aux_conv.bias is int64",
    ),
  ],
)
def test_a_network_that_differs_is_named_by_its_tensor(change, says, tmp_path):
  state = state_of("ddpmpp", params_of("ddpmpp"))
  change(state)
  path = tmp_path / "w.pt"
  path.write_bytes(ff.torch_zip(state))
  with pytest.raises(ValueError, match=says):
    convert.convert(path, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("said", "says"),
  [
    ({"img_resolution": 16}, "it says img_resolution=16, but its tensors are of resolution=8"),
    ({"label_dim": 10}, "it says label_dim=10, but its tensors are of num_classes=3"),
    ({"channel_mult": [2, 2]}, r"channel_mult=\(2, 2\), but its tensors are of channel_mult=\(1"),
    ({"attn_resolutions": [16]}, "it says attn_resolutions"),
    ({"dropout": "much"}, "it says dropout='much', not a number"),
  ],
)
def test_a_module_that_contradicts_its_tensors_is_refused(said, says):
  state = state_of("ddpmpp", params_of("ddpmpp"))
  with pytest.raises(ValueError, match=says):
    detect.detect(files.Weights(state, "EDMPrecond", said))


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "ema.net.model."])
def test_a_prefix_is_no_part_of_a_network(prefix):
  state = state_of("ddpmpp", params_of("ddpmpp"))
  renamed = {prefix + name.removeprefix("model."): a for name, a in state.items()}
  assert detect.detect(files.Weights(renamed)).tensors.keys() == state.keys()


# --- jcm ------------------------------------------------------------------------------------------


def jcm_state(params):
  """NCSN++ of 3 levels, 1 block, under jcm's names; from the table of its blocks, not our code."""
  order = [
    "enc.32x32_block0", "enc.16x16_down", "enc.16x16_block0", "enc.8x8_down", "enc.8x8_block0",
    "dec.8x8_in0", "dec.8x8_in1", "dec.8x8_block0", "dec.8x8_block1", "dec.16x16_up",
    "dec.16x16_block0", "dec.16x16_block1", "dec.32x32_up", "dec.32x32_block0", "dec.32x32_block1",
  ]  # fmt: skip
  attentions = ["enc.16x16_block0", "dec.8x8_in0", "dec.16x16_block1"]
  found = {"GaussianFourierProjection_0": {"W": params["map_noise"]["freqs"]}}
  for k, name in enumerate(order):
    part, block = name.split(".")
    ours = params[part][block]
    theirs = found[f"ResnetBlockBigGANpp_{k}"] = {
      "GroupNorm_0": ours["norm0"], "Conv_0": ours["conv0"], "Dense_0": ours["affine"],
      "GroupNorm_1": ours["norm1"], "Conv_1": ours["conv1"],
    }  # fmt: skip
    if "skip" in ours:
      theirs["Conv_2"] = ours["skip"]
    if name in attentions:
      kernel, bias = ours["qkv"]["kernel"][0, 0], ours["qkv"]["bias"]
      found[f"AttnBlockpp_{attentions.index(name)}"] = {
        "GroupNorm_0": ours["norm2"],
        **{f"NIN_{j}": {"W": kernel[:, j::3], "b": bias[j::3]} for j in range(3)},
        "NIN_3": {"W": ours["proj"]["kernel"][0, 0], "b": ours["proj"]["bias"]},
      }
  for i, side in enumerate((16, 8)):
    down = params["enc"][f"{side}x{side}_aux_residual"]
    found[f"Downsample_{i}"] = {"Conv2d_0": {"weight": down["kernel"], "bias": down["bias"]}}
  outer = {"Conv_0": ("enc", "32x32_conv"), "GroupNorm_0": ("dec", "32x32_aux_norm"),
           "Conv_1": ("dec", "32x32_aux_conv")}  # fmt: skip
  found |= {name: params[part][layer] for name, (part, layer) in outer.items()}
  return found | {"Dense_0": params["map_layer0"], "Dense_1": params["map_layer1"]}


def test_jcm_is_read_as_the_ncsnpp_that_it_is(tmp_path):
  params = params_of(
    "ncsnpp", resolution=32, channel_mult=(2, 2, 2), attn_resolutions=(16,), dropout=0.0
  )
  theirs = jcm_state(params)
  state = {"step": 7, "lr": 1e-3, "params": random_like(theirs, 9), "params_ema": theirs}
  foreign = read(tmp_path, serialization.msgpack_serialize(state))
  found = detect.detect(foreign.networks[files.choose(foreign.networks, None)])
  assert found.net["fir"] == (1, 3, 3, 1) and found.net["encoder"] == "residual"
  got = convert._params(experiment.parse(convert.run_record(found)), found)
  jax.tree.map(np.testing.assert_array_equal, got["net"], params)
  flat = dict(files._flat(theirs))
  del flat["AttnBlockpp_1/NIN_2/W"]
  with pytest.raises(ValueError, match="no attention NIN_0 to NIN_3 for model.dec.8x8_in0"):
    jcm.as_edm(flat)
  with pytest.raises(ValueError, match="'?Other_0'? is not in its NCSN"):
    jcm.as_edm(dict(files._flat(theirs)) | {"Other_0/kernel": np.zeros(3)})


# --- runs -----------------------------------------------------------------------------------------

SMALL = dict(channel_mult=(1,), attn_resolutions=())


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
  """A pickle, the weights in it, the run that it became and what was said."""
  root = tmp_path_factory.mktemp("convert")
  params = random_like(shapes_of("ddpmpp", **SMALL))
  params["dec"]["8x8_aux_conv"]["kernel"] *= 0.01  # samples stay images
  path, workdir = root / "edm-digits.pkl", root / "run"
  path.write_bytes(edm_file("ddpmpp", params))
  assert command.main([str(path), "--to", str(workdir)]) == 0
  return path, params, workdir


@pytest.fixture(scope="module", name="trained")
def _trained(run):
  return stored_runs.load_network(run[2], sharding.make_mesh())


def test_a_converted_run_is_edms_denoiser(run, trained):
  _, params, _ = run
  (net, _, _, _, record), averages, step = trained
  assert step == 0 and record["net"]["preconditioning"] == "edm"
  assert record["net"]["dropout"] == 0.25
  jax.tree.map(np.testing.assert_array_equal, averages["main"], params)
  raw = network("ddpmpp", **SMALL, preconditioning="trigflow")  # F_EDM itself, told c_noise
  x = jax.random.normal(jax.random.key(1), (2 * 8 * 8 * 3,)).reshape(2, 8, 8, 3)
  sigma, cond = jnp.array([0.3, 7.0]), {"label": jnp.array([0, 2])}
  each = lambda a: a.reshape(-1, 1, 1, 1)
  total = each(sigma**2 + SIGMA_DATA**2)
  F = jax.jit(raw.apply)(params, x / jnp.sqrt(total), jnp.log(sigma) / 4, cond, None)
  D = SIGMA_DATA**2 / total * x + each(sigma) * SIGMA_DATA / jnp.sqrt(total) * F
  t = jnp.arctan(sigma / SIGMA_DATA)
  x_t = each(jnp.cos(t)) * x
  G = jax.jit(net.apply)(averages["main"], x_t / SIGMA_DATA, t, cond, None)
  np.testing.assert_allclose(
    each(jnp.cos(t)) * x_t - each(jnp.sin(t)) * SIGMA_DATA * G, D, 2e-4, 2e-5
  )


def test_a_converted_run_says_where_it_comes_from(run):
  path, _, workdir = run
  said = json.loads((workdir / convert.PROVENANCE).read_text())
  assert said["source"] == path.name and said["sha256"] == files.digest(path)
  assert said["class_name"] == "EDMPrecond" and said["network"] == "ema"
  assert "CC BY-NC-SA 4.0" in said["licence"]
  meta = stored_runs.load_state(workdir, sharding.make_mesh()).meta
  assert meta["provenance"] == said
  assert stored_runs.read_record(workdir) == meta["config"]


def test_a_converted_run_teaches_and_is_sampled(run):
  _, params, workdir = run
  config = tiny.config(**{"teacher.workdir": str(workdir)})
  net = net_config("ddpmpp", **SMALL).net
  with config.unlocked():
    config.net = net
  given = experiment.parse(config)
  loaded = stored_runs.load_teacher(given, sharding.make_mesh())
  jax.tree.map(np.testing.assert_array_equal, loaded.model[1], params)
  record = stored_runs.read_record(workdir) | {"samplers": given.record["samplers"]}
  own = experiment.parse(record)
  picture, arrays = sample.sample(own, workdir, num_samples=8, name="one_step", seed=0)
  with np.load(arrays) as found:
    assert found["arr_0"].shape == (8, 8, 8, 3) and found["arr_0"].dtype == np.uint8
  assert picture.exists()


def test_an_exported_run_comes_back_as_it_was(run, tmp_path, capsys):
  _, params, workdir = run
  target = tmp_path / "out.safetensors"
  assert command.main(["--export", str(workdir), "--to", str(target)]) == 0
  assert "average 'main'" in capsys.readouterr().out
  state = state_of("ddpmpp", params)
  weights = only(files.read(target))
  assert_equal(weights.tensors, state)
  assert "sha256" in weights.options["provenance"]
  found = detect.detect(weights)
  said = json.loads((workdir / "checkpoints" / "0" / "meta" / "metadata").read_text())
  assert json.loads(json.dumps(found.net)) == said["config"]["net"]
  text = weights.options["cmjax"].replace('"resolution": 8', '"resolution": 16')
  changed = weights.options | {"cmjax": text}
  with pytest.raises(
    ValueError, match="it says resolution=16, but its tensors are of resolution=8"
  ):
    detect.detect(weights._replace(options=changed))
  assert command.main(["--export", str(workdir), "--to", str(target)]) == 1
  assert "exists: choose another name" in capsys.readouterr().err
  other = tmp_path / "other.safetensors"
  assert command.main(["--export", str(workdir), "--to", str(other), "--ema", "long"]) == 1
  assert "Choose from: main." in capsys.readouterr().err


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["--to", "x"], "one of the two"),
    (["a.pkl", "--export", "run", "--to", "x"], "one of the two"),
    (["a.pkl"], "required: --to"),
    (["a.pkl", "--too", "x"], "required: --to"),
  ],
)
def test_a_mistyped_command_says_what_is_right(args, says, capsys):
  with pytest.raises(SystemExit) as stop:
    command.main(args)
  assert stop.value.code == 2 and says in capsys.readouterr().err


def test_an_error_is_one_line_and_exit_code_1(run, tmp_path, capsys):
  path, _, workdir = run
  for args, says in (
    ([str(tmp_path / "none.pkl"), "--to", "x"], "none.pkl does not exist."),
    ([str(path), "--to", str(workdir)], "has checkpoints already"),
    ([str(path), "--to", str(tmp_path / "y"), "--ema", "net"], "it has no 'net'; choose by --ema"),
    (["--export", str(tmp_path), "--to", "x.safetensors"], "No checkpoints in"),
    (["--export", str(workdir), "--to", "x.pt"], "ends in .safetensors"),
  ):
    assert command.main(args) == 1
    err = capsys.readouterr().err
    assert err.startswith("cmjax: ") and says in err and err.count("\n") == 1


@pytest.mark.parametrize("ends", ["killed here", None])
def test_an_export_is_there_whole_or_not_at_all(run, tmp_path, monkeypatch, ends):
  target, save_file = tmp_path / "out.safetensors", safetensors.numpy.save_file

  def half(arrays, path, metadata):
    save_file(arrays, path, metadata=metadata)
    assert not target.exists()
    if ends:
      raise KeyboardInterrupt(ends)

  monkeypatch.setattr(safetensors.numpy, "save_file", half)
  with pytest.raises(KeyboardInterrupt) if ends else contextlib.nullcontext():
    convert.export(run[2], target)
  assert [path.name for path in tmp_path.iterdir()] == [target.name] * (not ends)


@pytest.fixture(scope="module", name="small")
def _small(tmp_path_factory):
  """A file of a network that is quickly traced, and the run that it becomes."""
  root = tmp_path_factory.mktemp("small")
  net = dict(name="mlp", dim=2, width=16, depth=1, embed_channels=16, dtype="float32")
  given = experiment.parse(convert.run_record(detect.Found("cmjax", net, SIGMA_DATA, (1, 1), {})))
  params = random_like(jax.eval_shape(given.network.init, jax.random.key(0)))
  convert._save(epath.Path(root) / "source", given, {"net": params, "weighting": {}}, {})
  convert.export(root / "source", root / "weights.safetensors")
  convert.convert(root / "weights.safetensors", root / "run")
  return root / "weights.safetensors", root / "run"


def listing(workdir):
  return {
    path.relative_to(workdir).parts[:2]
    for path in workdir.rglob("*")
    if path.is_file() and path.name != "lock"
  }


def stop_when(monkeypatch, module, name, condition=lambda *args: True):
  """Stops the program, as a kill does, where it calls a function."""
  original = getattr(module, name)

  def stopping(*args, **kwargs):
    if condition(*args):
      raise KeyboardInterrupt("killed here")
    return original(*args, **kwargs)

  monkeypatch.setattr(module, name, stopping)


KILLS = {
  "before anything": (checkpoint, "check_writable"),
  "before the checkpoint": (checkpoint.Checkpoints, "save"),
  "in it": (commit, "_complete"),
  "after it": (convert, "check"),
  "before provenance.json": (convert, "write_json", lambda path, _: path.name[0] == "p"),
  "before config.json": (convert, "write_json", lambda path, _: path.name[0] == "c"),
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_a_conversion_that_was_killed_goes_on_and_ends_as_one_that_was_not(
  small, tmp_path, monkeypatch, kill
):
  path, whole = small
  monkeypatch.setattr(convert, "check", lambda workdir, expected: "checked")
  with monkeypatch.context() as patch:
    stop_when(patch, *kill)
    with pytest.raises((KeyboardInterrupt, OSError), match="killed here"):
      convert.convert(path, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()
  (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
  convert.convert(path, tmp_path / "run")
  assert listing(tmp_path / "run") == listing(whole)
  for name in ("config.json", "provenance.json"):
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
  tiny.assert_same(tiny.state(tmp_path / "run"), tiny.state(whole))
  with pytest.raises(ValueError, match="has checkpoints already: choose another folder"):
    convert.convert(path, tmp_path / "run")


def test_what_another_file_has_begun_is_not_mixed_with_it(small, tmp_path, monkeypatch):
  monkeypatch.setattr(convert, "check", lambda workdir, expected: "checked")
  path, workdir = shutil.copy(small[0], tmp_path / "other.safetensors"), tmp_path / "run"
  convert.convert(path, workdir)
  (workdir / "config.json").unlink()
  with pytest.raises(ValueError, match="has checkpoints of another file already: choose another"):
    convert.convert(small[0], workdir)
  convert.convert(path, workdir)


def test_a_run_that_is_being_trained_is_no_place_to_convert_to(small, tmp_path):
  with lock.hold(tmp_path, "train"):
    with pytest.raises(ValueError, match=f"Another run trains in {tmp_path}: process "):
      convert.convert(small[0], tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncsnpp", "adm", "edm2"])
def test_every_family_is_converted_run_exported_and_read_back(name, tmp_path):
  path, workdir, out = tmp_path / "a.pkl", tmp_path / "run", tmp_path / "a.safetensors"
  path.write_bytes(edm_file(name, params_of(name)))
  convert.convert(path, workdir)
  convert.export(workdir, out)
  before, after = (detect.detect(only(files.read(p))) for p in (path, out))
  assert before.net == after.net
  assert_equal(after.tensors, {k: a.astype("f4") for k, a in before.tensors.items()})


DIT = dict(
  name="dit", resolution=8, in_channels=3, patch=2, size=None, depth=3, width=16, num_heads=2,
  num_classes=3, dtype="float32",
)  # fmt: skip


@pytest.mark.parametrize(
  ("net", "name", "shape"),
  [
    (DIT, "blocks.block2.qkv.weight", (48, 16)),
    (DIT | dict(scan=True), "blocks.block2.qkv.weight", (48, 16)),
    (dict(name="mlp", dim=2, width=16, depth=1, embed_channels=16, dtype="float32"),
     "fc_in.weight", (16, 14)),
  ],
)  # fmt: skip
def test_our_own_networks_go_out_under_their_own_names_and_come_back(net, name, shape, tmp_path):
  given = experiment.parse(convert.run_record(detect.Found("cmjax", net, SIGMA_DATA, (1, 1), {})))
  params = random_like(jax.eval_shape(given.network.init, jax.random.key(0)))
  before, after, path = tmp_path / "before", tmp_path / "after", tmp_path / "own.safetensors"
  convert._save(epath.Path(before), given, {"net": params, "weighting": {}}, {})
  convert.export(before, path)
  assert only(files.read(path)).tensors[name].shape == shape
  convert.convert(path, after)
  found, averages, _ = stored_runs.load_network(after, sharding.make_mesh())
  assert found.record["net"] == given.record["net"] and found.run.sigma_data == SIGMA_DATA
  jax.tree.map(np.testing.assert_array_equal, averages["main"], params)


@pytest.mark.parametrize(
  "change, convention",
  [
    ({}, "edm2"),
    ({"in_channels": 3}, None),
    ({"preconditioning": "trigflow"}, None),  # of cmjax, exported
    ({"name": "dit"}, None),
  ],
)
def test_networks_of_edm2_on_latents_have_its_convention(change, convention):
  edm2 = {"name": "edm2", "resolution": 64, "in_channels": 4, "preconditioning": "edm"}
  net = edm2 | change
  record = convert.run_record(detect.Found("edm2", net, 0.5, (), {}))
  assert models.samples(record["net"], record["data"]).latents == convention
