"""The smallest complete experiment: points in the plane, a network of a few hundred numbers."""

import jax
import ml_collections as mlc
import numpy as np

from cmjax import experiment
from cmjax.base import sharding
from cmjax.program import stored_runs
from cmjax.program import train as program


def get_config(variant: str = "") -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 200 if variant == "long" else 12
  c.batch_size = 16
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5
  c.data = dict(
    name="toy2d", flip=False, toy2d=dict(distribution="checkerboard", num_points=512)
  )  # fmt: skip
  c.net = dict(name="mlp", dim=2, width=16, depth=1, embed_channels=16, dtype="float32")
  c.loss = dict(
    name="sct", P_mean=-1.0, P_std=1.4, weighting="learned", c=0.1, warmup_steps=10, norm="l2"
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1e-2, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(
    main=dict(name="half_life", half_life_images=200, rampup_ratio=0.05),
    short=dict(name="half_life", half_life_images=50),
  )
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")
  c.samplers = dict(one_step=dict(name="consistency"), two_steps=dict(name="consistency"))
  c.samplers.two_steps.mid_times = (1.1,)
  c.evals = dict(
    grid=dict(name="samples", samplers=("two_steps",), emas=("main",), every_steps=6,
              num_samples=16),
    swd=dict(name="sliced_wasserstein", samplers=("one_step",), emas=("main",), every_steps=6,
             num_samples=64, batch_size=32),
  )  # fmt: skip
  c.log_every_steps = 2
  c.checkpoint = dict(every_steps=4, keep=2, asynchronous=True)
  if variant == "long":
    c.evals, c.log_every_steps, c.checkpoint.every_steps = {}, 20, 20
  if variant == "scored":  # an evaluation of minutes, at step 16
    del c.evals.grid
    c.evals.swd.update(every_steps=16, num_samples=2**20, batch_size=64)
    c.total_steps, c.log_every_steps, c.checkpoint.every_steps = 200, 8, 200
  if variant == "snapshots":
    c.ema = dict(
      power_05=dict(name="power", sigma_rel=0.05),
      power_10=dict(name="power", sigma_rel=0.10),
      power_15=dict(name="power", sigma_rel=0.15),  # of which there are no snapshots
      main=c.ema.main,
    )
    c.snapshots = dict(every_steps=2, emas=("power_05", "power_10"), dtype="float16")
    c.evals = dict(
      fd=dict(name="frechet", samplers=("one_step", "two_steps"), emas=("main",), every_steps=6,
              num_samples=64, batch_size=32, features="pixels"),
    )  # fmt: skip
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c


def config(variant: str = "", **values) -> mlc.ConfigDict:
  """get_config(variant) with values by their dotted keys."""
  c = get_config(variant)
  c.update_from_flattened_dict(values)
  return c


def digits(**values) -> mlc.ConfigDict:
  """`config(**values)` with a tiny network of digits with classes, and nothing that scores it."""
  c = config(**values).unlock()
  c.data.name = "digits"
  c.net = dict(
    name="ddpmpp", resolution=8, in_channels=1, channels=4, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), num_classes=10, dtype="float32",
  )  # fmt: skip
  c.evals = {}
  return c


def experiment_of(variant: str = "", **values) -> experiment.Experiment:
  """The experiment of `config(variant, **values)`."""
  return experiment.parse(config(variant, **values))


def train(settings: mlc.ConfigDict, workdir, **options) -> dict[str, float]:
  """Trains the experiment of a config."""
  return program.train(experiment.parse(settings), workdir, **options)


def leaves(tree) -> dict[str, np.ndarray]:
  """{path: array} of a tree, on the host."""
  flat = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}


def state(workdir) -> dict[str, np.ndarray]:
  """Every number that the newest good checkpoint of a run holds."""
  return leaves(stored_runs.load_state(workdir, sharding.make_mesh()).state)


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
  """Bit for bit."""
  assert a.keys() == b.keys()
  differ = [name for name in a if a[name].tobytes() != b[name].tobytes()]
  assert not differ, f"{len(differ)} of {len(a)} arrays differ: {differ[:5]}"
