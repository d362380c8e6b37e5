"""Every page of configs/ is whole and says what was published; every kind of one builds, small.

`test_no_setting_of_a_page_has_changed` compares all settings of all pages with the file
published_pages.json. After a page was changed on purpose, write that file anew:

  PYTHONPATH=.:tests python -m helpers.published_pages
"""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import experiment, latents, pages
from cmjax.base import sharding
from cmjax.data import downloads, manifest, shards
from cmjax.experiment import models
from cmjax.program import plan, train
from cmjax.types import Network
from helpers import in_process, loopback_files, published_pages

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
PUBLISHED = published_pages.read()
# All that the parts of a config beside the network want of one, before they are run.
ANY_NETWORK = Network(lambda key: {}, lambda params, x, t, cond, key: x)


def load(spec):
  """A page on one device, open to changes."""
  config = pages.load(spec).unlock()
  config.mesh = dict(data=1, fsdp=1)
  return config


def kind(config):
  """What is built of a config: the kind of network, and the method with its options."""
  net, loss = config.net, config.loss
  network = (net.name, net.get("preconditioning"), net.get("encoder"))
  parts = [loss.get(key, {}).get("name") for key in ("pairs", "curriculum", "target", "tangent")]
  options = [bool(loss.get(key)) for key in ("vsd", "guidance", "num_segments", "label_dropout")]
  return {("network", *network), ("method", loss.name, *parts, *options)}


def kinds():
  """As few pages as have all kinds of networks and methods, the smallest first."""
  chosen, known = [], set()
  configs = {name: pages.load(name) for name in NAMES}
  for name in sorted(NAMES, key=lambda name: configs[name].net.get("resolution", 0)):
    if new := kind(configs[name]) - known:
      chosen, known = [*chosen, name], known | new
  return chosen


KINDS = kinds()


def first_of_each_network():
  """Of KINDS those that are traced with every level of their network, the others with one."""
  return {pages.load(name).net.name: name for name in reversed(KINDS)}.values()


@pytest.fixture
def images(monkeypatch, tmp_path):
  """A few images in the place of CIFAR-10's."""
  path = tmp_path / "cifar-10-binary.tar.gz"
  path.write_bytes(loopback_files.cifar10(num=4)[0])
  monkeypatch.setattr(downloads, "fetch", lambda file, folder, key: path)


def prepared(path, config):
  """A prepared set of a few images, or latents, of the config's shape."""
  shape = (config.net.resolution,) * 2 + (config.net.in_channels,)
  convention = config.data.records.get("latents")
  recorded = latents.record(latents.CONVENTIONS[convention]) if convention else None
  layout = shards.Layout(shape, "float32" if convention else "uint8", bool(convention))
  zeros = np.zeros((20, *shape), layout.dtype)
  arrays = {"image": zeros, "image_std": zeros, "label": np.arange(20) % 2}
  folder, name = path / "train", shards.name("train", 0, 1)
  folder.mkdir()
  shard = manifest.Shard(name=name, **shards.write(folder / name, layout.pack(arrays)))
  classes = tuple(str(i) for i in range(config.net.num_classes))
  manifest.write(folder, manifest.Manifest("train", layout, classes, recorded, (shard,), {}))
  return str(path)


def arrays(path, config):
  """An .npz with an image of each class of a config."""
  labels = np.arange(config.net.num_classes, dtype=np.int32)
  images = np.zeros((len(labels), *(config.net.resolution,) * 2, config.net.in_channels), np.uint8)
  images[:, 0] = 255
  splits = ("train", "test")
  np.savez(
    path, **{f"{s}_images": images for s in splits}, **{f"{s}_labels": labels for s in splits}
  )
  return str(path)


def test_every_published_page_is_still_there():
  assert set(PUBLISHED) <= set(published_pages.specs())


@pytest.mark.parametrize("spec", PUBLISHED)
def test_no_setting_of_a_page_has_changed(spec):
  assert published_pages.line(spec) == PUBLISHED[spec]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_its_command_and_imports_only_pages(name):
  tree = ast.parse((CONFIGS / f"{name}.py").read_text())
  text = ast.get_docstring(tree)
  assert f"--config=configs/{name}.py" in text and f"--workdir=runs/{name}" in text
  imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
  assert {alias.name for node in imports for alias in node.names} <= {"ml_collections", "pages"}
  assert {node.module for node in imports if isinstance(node, ast.ImportFrom)} <= {"cmjax"}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_in_one_line_what_it_needs_and_the_command_for_that(name):
  needs, config = pages.needs_first(name), pages.load(name)
  start = config.init_from.workdir or config.teacher.workdir
  if start:
    assert needs == pages.command_for(start)
  elif config.data.name in ("records", "folder", "npz"):
    path = config.data[config.data.name].path
    assert needs.startswith("cmjax ") and path in needs
  else:
    assert needs.startswith("nothing. ")


@pytest.mark.parametrize(
  "workdir, command",
  [
    ("runs/cifar10_teacher", "cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher"),
    ("gs://b/imagenet64_teacher_xl/", "cmjax train --config=imagenet64_teacher:xl --workdir=gs://b/"
     "imagenet64_teacher_xl"),
    ("runs/edm2_img64_s", "cmjax convert edm2-img64-s-1073741-0.075.pkl --to runs/edm2_img64_s"),
    ("runs/mine", None),
  ],
)  # fmt: skip
def test_the_command_that_makes_a_run_is_known_by_its_workdir(workdir, command):
  assert pages.command_for(workdir) == command


def test_a_page_beside_a_workdir_is_the_one_that_makes_it(tmp_path):
  (tmp_path / "teacher.py").write_text("")
  command = f"cmjax train --config={tmp_path}/teacher.py --workdir={tmp_path}/teacher"
  assert pages.command_for(tmp_path / "teacher") == command


def test_students_start_from_the_teacher_where_their_numbers_are_for_that():
  continuous = [name for name in NAMES if pages.load(name).loss.name in ("sct", "scd")]
  fresh = [name for name in continuous if not pages.load(name).init_from.workdir]
  assert fresh == ["toy2d_sct"] and len(continuous) > 10
  assert pages.load("cifar10_sct").init_from.workdir == "runs/cifar10_teacher"
  scratch = pages.load("cifar10_sct:scratch").to_dict()
  assert scratch.pop("init_from") == {"ema": "main", "workdir": ""}
  assert scratch == {
    k: v for k, v in pages.load("cifar10_sct").to_dict().items() if k != "init_from"
  }


def test_the_network_of_imagenet64_ect_is_that_of_edm2_s():
  params = jax.eval_shape(experiment.parse(load("imagenet64_ect")).network.init, jax.random.key(0))
  # EDM2's file has 280,209,381: with 128 of its logvar head, and without 2 x 192 constants.
  assert sum(x.size for x in jax.tree.leaves(params)) == 280_209_381 - 128 + 2 * 192


@pytest.fixture
def any_network(monkeypatch):
  """A page's own network takes seconds to put together, and another test does it."""
  like = lambda section, sigma_data: ANY_NETWORK._replace(inputs=models.inputs_of(section))
  monkeypatch.setattr(models, "network", like)


@pytest.mark.parametrize("spec", [*NAMES, *(f"{name}:smoke" for name in KINDS)])
def test_a_page_builds_all_parts_beside_the_network(spec, any_network, images, tmp_path):
  config, mesh = load(spec), sharding.make_mesh(1, 1)
  if config.data.name == "records":
    config.data.records.path = prepared(tmp_path, config)
  if config.data.name in ("npz", "fashion_mnist"):
    config.data.name, config.data.npz.path = "npz", arrays(tmp_path / "data.npz", config)
  e = experiment.parse(config)
  experiment.check(e)
  assert len(experiment.opened(e)) > 0
  assert float(e.schedule(jnp.int32(10**6))) > 0
  assert callable(experiment.transformation(e).update)
  assert (e.snapshots is not None) == ("snapshots" in config)
  scored = config.evals.get("fid")  # off in a page: its files are the user's
  evaluators = experiment.open_evaluators(e, mesh)
  off = ({"fid"} if scored else set()) | ({"grid"} if e.samples.latents else set())
  assert set(evaluators) == set(config.evals) - off
  if scored and not e.samples.latents:  # all else about it is right
    del scored["weights"], scored["variant"]
    scored.features = "pixels"
    assert "fid" in experiment.open_evaluators(experiment.parse(config), mesh)
  assert (e.teacher is not None) == e.method.distils
  frozen = experiment.Frozen((e.network, {}) if e.method.distils else None)
  if config.loss.get("distance", {}).get("name") != "lpips":  # whose weights are the user's
    assert callable(e.method.loss(e.network, frozen))


@pytest.mark.parametrize("spec", KINDS)
def test_every_kind_of_network_and_method_builds_small(spec):
  config = pages.smoke(load(spec))
  assert kind(config) == kind(load(spec))
  e = experiment.parse(config)
  state = jax.eval_shape(experiment.state_init(e), jax.random.key(0))
  target = {"target"} if experiment.target_name(e) else set()
  assert set(state.ema) == set(config.ema) | target
  assert sum(x.size for x in jax.tree.leaves(state.params["net"])) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*KINDS, "imagenet512_scd:xxl"])  # the last with remat and scan
def test_every_kind_of_network_and_method_has_a_small_step(spec):
  config = pages.smoke(load(spec))
  if spec in KINDS and spec not in first_of_each_network():
    config.net.update(channel_mult=(1,), attn_resolutions=(config.net.resolution,))
  plan.trace_step(experiment.parse(config), sharding.make_mesh())


def test_the_cifar10_networks_are_the_published_ones():
  params = jax.eval_shape(experiment.parse(load("cifar10_sct")).network.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == 60_067_715
  for name in ("cifar10_teacher", "cifar10_sct", "cifar10_scd"):
    config = load(name)
    assert config.batch_size == 512 and config.total_steps == 400_000
    config.net.dropout = 0.2  # which has no parameters
    assert config.net == load("cifar10_sct").net


@pytest.mark.parametrize(
  ("size", "millions"),
  [
    ("s", 280.2),
    *(
      pytest.param(*size, marks=pytest.mark.slow)
      for size in (("m", 497.8), ("l", 777.5), ("xl", 1119.3), ("xxl", 1523.2))
    ),
  ],
)
def test_the_networks_on_latents_are_the_published_ones_and_what_scm_adds(size, millions):
  config = load(f"imagenet512_scd:{size}")
  # The paper's counts are of EDM2's own modulation, with one number a channel, and its logvar.
  config.net.update(modulation="edm2", guidance=False)
  net = models.network(config.net, config.sigma_data)  # alone: samplers want guidance
  params = jax.eval_shape(net.init, jax.random.key(0))
  number = sum(x.size for x in jax.tree.leaves(params))
  assert round(number / 1e6, 1) == millions


@pytest.mark.slow
def test_the_headline_command_brings_its_data_itself(tmp_path, monkeypatch, capsys):
  archive, _ = loopback_files.cifar10(num=16)
  monkeypatch.setattr(downloads, "PAUSE", 0.0)
  cache, runs = f"--config.data.cifar10.cache={tmp_path / 'cache'}", tmp_path / "runs"
  teacher, sct = runs / "cifar10_teacher", runs / "cifar10_sct"
  start = f"--config.init_from.workdir={teacher}"
  small = ("--config.mesh.data=1", cache)
  with loopback_files.serving({"cifar-10-binary.tar.gz": archive}) as server:
    loopback_files.publish(monkeypatch, "cifar10", server)
    server.cut, server.cuts = len(archive) // 3, 2  # the connection is lost twice
    command = ("--config=configs/cifar10_sct.py:smoke", f"--workdir={sct}", start, *small)
    code, _, err = in_process.answer(capsys, lambda: in_process.mode(*command))
    advice = f"Make it first: cmjax train --config=cifar10_teacher --workdir={teacher};"
    assert code == 1 and advice in err and not server.asked
    assert not in_process.mode(
      "--config=configs/cifar10_teacher.py:smoke", f"--workdir={teacher}", *small
    )
    assert len(server.asked) == 3
    assert not in_process.mode(*command)
    assert len(server.asked) == 3  # it is kept
  for workdir, sampler in ((teacher, "heun"), (sct, "two_step")):
    assert (workdir / "checkpoints" / str(pages.STEPS)).is_dir()
    assert (workdir / "samples" / f"{sampler}_main_{pages.STEPS:08d}.png").exists()
    assert (workdir / "report.html").exists()


@pytest.mark.slow
def test_the_plane_takes_its_smoke_steps(tmp_path):
  scores = train.train(experiment.parse(load("toy2d_sct:smoke")), tmp_path)
  # Four steps do not make a model: of 64 points nothing more can be said of the score.
  assert scores["swd/two_step/main"] > 0 and scores["swd/floor"] > 0


@pytest.mark.slow  # `make quickstart` runs both in earnest
def test_digits_take_their_smoke_steps(tmp_path):
  scores = train.train(experiment.parse(load("digits_teacher:smoke")), tmp_path / "teacher")
  assert scores["fd/heun/main"] > scores["fd/floor"] > 0 and scores["speed/heun"] > 0
  config = load("digits_scd:smoke")
  config.teacher.workdir = config.init_from.workdir = str(tmp_path / "teacher")
  scores = train.train(experiment.parse(config), tmp_path / "scd")
  assert scores["fd/one_step/main"] > scores["fd/floor"] > 0
