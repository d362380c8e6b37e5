"""Values that cannot be meant are refused at the door, whatever part takes them."""

import inspect
import math

import numpy as np
import pytest

from cmjax import experiment, pages, weighting
from cmjax.base import parts, ranges
from cmjax.experiment import declared, evaluation, methods, models, optimizers, sampling
from cmjax.experiment.fields import Run
from helpers import tiny

NAN, INF = math.nan, math.inf
# Numbers without a range, and why: none so far.
FREE: dict[str, str] = {}
# Arguments of factories that no section has: they are given what the config says elsewhere.
GIVEN = {
  "sigma_data": "config.sigma_data",
  "shape": "the network's",
  "times": "a row's of its own",
  "loss_scale of discrete.loss": "a test's",
  "batch_size of half_life": "config.batch_size",
  "batch_size of power": "config.batch_size",
}


def without_range(config):
  """The numbers of a config that have none."""
  hints = declared.hints(config)
  return {
    key: value
    for key, value in declared.numbers(config).items()
    if key not in FREE and not (key in hints and ranges.declares(hints[key]))
  }


def test_every_number_of_every_page_has_a_range_that_holds_it(monkeypatch):
  # All that a page names is cmjax's own: to ask what packages are installed takes longer than all
  # the rest.
  monkeypatch.setattr(parts, "entry_points", lambda: pytest.fail("asked for installed packages"))
  seen = set()
  for name in pages.names():
    for variant in ("", "smoke", *pages.variants(name)):
      config = pages.load(f"{name}:{variant}" if variant else name)
      assert without_range(config) == {}, name
      record = config.to_dict()
      assert declared.checked(record) == record
      seen |= set(declared.numbers(config))
  assert len(seen) > 90 and {"optim.lr", "loss.vsd.fake.optim.eps", "net.fir"} <= seen


def test_a_new_number_without_a_range_is_found():
  config = tiny.config().unlock()
  assert without_range(config) == {}
  config.net.surprise, config.optim.schedule.gamma, config.extra = 3, 0.5, (1, 2)
  assert without_range(config) == {
    "net.surprise": 3, "optim.schedule.gamma": 0.5, "extra": (1, 2)
  }  # fmt: skip


def factories():
  """All that a config can name."""
  weightings = (getattr(weighting, name) for name in methods.WEIGHTINGS)
  tables = (
    *(models.NETWORKS, models.SOURCES, optimizers.OPTIMIZERS, optimizers.SCHEDULES),
    *(optimizers.AVERAGES, methods.PROPOSALS, methods.TANGENTS, methods.CURRICULA, methods.PAIRS),
    methods.DISTANCES,
  )
  found = [*weightings, *(factory for table in tables for factory in table.values())]
  found += [factory for row in methods.METHODS.values() for factory in row.takes]
  found += [part for row in sampling.SAMPLERS.values() for part in (row.draw, row.times)]
  found += [row.arguments_of for row in evaluation.EVALUATORS.values()]
  return list(dict.fromkeys([*found, Run]))


@pytest.mark.parametrize("factory", factories(), ids=lambda f: f.__name__)
def test_every_number_that_a_factory_takes_has_a_range(factory):
  without = {
    key
    for key, hint in ranges.of(factory).items()
    if key not in ("return", *GIVEN)
    and f"{key} of {factory.__name__}" not in GIVEN
    and not ranges.declares(hint)
  }
  assert not without
  made = factory.__init__ if inspect.isclass(factory) and factory is not Run else factory
  named = inspect.signature(made).parameters
  assert set(ranges.of(factory)) - {"return"} <= set(named)


def record_with(**values):
  record = tiny.get_config("snapshots").to_dict()
  for path, value in values.items():
    *above, key = path.split(".")
    section = record
    for name in above:
      section = section[name]
    section[key] = value
  return record


COUNT = (0, -1, 1.5, NAN, INF, 2**31, None, True, "many")
REFUSED = {
  "seed": (-1, 2**32, 2**63, 0.5, NAN, None, True),
  "sigma_data": (0, 1e-30, -0.5, NAN, INF, 1e30, None, "0.5"),
  "total_steps": COUNT[1:],
  "batch_size": COUNT,
  "log_every_steps": COUNT,
  "checkpoint.every_steps": COUNT,
  "checkpoint.keep": COUNT,
  "checkpoint.asynchronous": (1, "off", None),
  "steps_per_dispatch": COUNT,
  "microbatch": (0, -1, 1.5, NAN, "off", True),
  "snapshots.every_steps": COUNT,
  "evals.fd.every_steps": COUNT,
  "evals.fd.num_samples": COUNT,
  "evals.fd.batch_size": COUNT,
  "evals.fd.samplers": ("one_step", None, 3, (1,)),
  "evals.fd.emas": ("main", None, (None,)),
  "data.flip": (1, 0, None, "on"),
  "data.toy2d.num_points": COUNT,
  "data.toy2d.seed": (-1, 2**32, 0.5, None),
  "net.dim": (0, -1, 1.5, 10**9, None, True, "2"),
  "net.width": (0, -1, 1.5, 10**9, None, True),
  "net.depth": (0, -1, 1.5, 10**9, None, True),
  "net.embed_channels": (0, -1, 1.5, NAN, None),
  "net.dropout": (1.0, -0.1, NAN, None, True),
  "net.num_classes": (-1, 1.5, NAN, None, True),
  "net.frequencies": ((0.0,), (NAN,), (-1.0,), 1.0, None),
  "loss.P_mean": (NAN, INF, 1e3, None, "x"),
  "loss.P_std": (0, -1, NAN, INF, None),
  "loss.c": (0, -0.1, NAN, INF, 1e-60, None),
  "loss.warmup_steps": (-1, 1.5, NAN, 2**31, None),
  "loss.num_segments": (0, -1, 1.5, NAN, None),
  "loss.guidance": ((1.0,), (NAN, 1.0), 1.5, "x"),
  "optim.lr": (-1e-3, NAN, INF, "fast", None, True),
  "optim.b1": (1.0, -0.1, 1.5, NAN, None, True),
  "optim.b2": (1, -1e-9, NAN, INF, None),
  "optim.eps": (0, -1e-8, 1e-50, NAN, INF),
  "optim.clip_norm": (-1, 0, NAN, INF, True, "none"),
  "optim.loss_scale": (0, -1, NAN, INF, None),
  "optim.schedule.warmup_steps": (-1, 0.5, NAN, 2**31, None),
  "ema.main.half_life_images": (0, -1, NAN, INF, "50k", None),
  "ema.main.rampup_ratio": (0, -0.05, NAN, True),
  "ema.power_05.sigma_rel": (0, 0.3, -0.05, NAN, None),
  "samplers.two_steps.mid_times": (
    (0.0,), (math.pi / 2,), (-1.0,), (NAN,), (80.0,), 1.1, None, ("x",)
  ),
  "samplers.two_steps.mid_sigmas": ((0.0,), (-1.0,), (INF,), 1.0),
  "samplers.one_step.sigma_max": (0, -80.0, NAN, INF, None),
  "samplers.one_step.sigma_min": (-0.002, NAN, INF, None),
  "samplers.one_step.searched": (1, None, "no"),
  "mesh.data": (1.5, NAN, None, "all", -2),
  "mesh.fsdp": (1.5, NAN, None, True),
  "doctor.spike_factor": (1.0, 0, -3, NAN, "off"),
  "doctor.probe_every_steps": (0, -1, 1.5, NAN),
  "doctor.stall_seconds": (0, -1, NAN, "soon"),
  "deterministic": (1, "yes", None),
  "teacher.workdir": ("gs://b/x", "a\x1bb", None, 3, "~nobody_of_that_name"),
  "init_from.workdir": ("s3://b", "a\nb", None, "https://x"),
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_a_value_that_cannot_be_meant_is_one_line_with_its_key(key):
  for value in REFUSED[key]:
    with pytest.raises(ValueError) as error:
      declared.checked(record_with(**{key: value}))
    said = str(error.value)
    assert said.startswith(key) and len(said.splitlines()) == 1, (value, said)


@pytest.mark.parametrize(
  "values",
  [
    {"optim": {"name": "sgd", "lr": 0.1, "momentum": 1.5, "schedule": {"name": "constant"}}},
    {"optim": {"name": "adamw", "lr": 0.1, "weight_decay": -1.0, "schedule": {"name": "constant"}}},
    {"optim": {"name": "adamw", "lr": 0.1, "b2": 1.0, "schedule": {"name": "constant"}}},
    {"optim": {"name": "lion", "lr": 0.1, "clip_norm": -1.0, "schedule": {"name": "constant"}}},
    {"optim.schedule": {"name": "cosine_decay_schedule", "decay_steps": 0}},
    {"optim.schedule": {"name": "inverse_sqrt", "decay_steps": -5}},
    {"ema.main": {"name": "constant", "beta": 1.0}},
    {"ema.main": {"name": "power", "sigma_rel": NAN}},
    {"samplers.heun": {"name": "heun", "num_steps": 1}},
    {"samplers.heun": {"name": "heun", "num_steps": 8, "rho": 0.0}},
    {"samplers.churn": {"name": "stochastic", "num_steps": 8, "S_noise": 0.0}},
    {"samplers.guided": {"name": "consistency", "guidance": {"name": "input", "scale": NAN}}},
    {"loss.proposal": {"name": "lognormal", "P_mean": -1.0, "P_std": -1.0}},
    {"loss.weighting": {"name": "learned", "channels": 0}},
    {"loss.tangent": {"name": "discrete", "num_levels": 0}},
    {"loss.tangent": {"name": "central", "h": 0.0}},
    {"loss": {"name": "ct", "curriculum": {"name": "fixed", "N": 1}}},
    {"loss": {"name": "ct", "pairs": {"name": "ect", "q": 1.0}}},
    {"loss": {"name": "ct", "distance": {"name": "pseudo_huber", "c": 0.0}}},
    {"loss": {"name": "cd", "target": {"name": "curriculum", "mu0": 1.0}}},
    {"loss": {"name": "scd", "vsd": {"lambda_vsd": -1.0}}},
    {"loss": {"name": "scd", "vsd": {"fake": {"optim": {"name": "adam", "lr": -1.0}}}}},
    {"loss": {"name": "scd", "vsd": {"fake": {"P_std": 0.0}}}},
    {"net": {"name": "edm2", "channels": 0}},
    {"net": {"name": "ddpmpp", "channel_mult": (1, 0)}},
    {"net": {"name": "dit", "patch": 0}},
    {"data.folder": {"path": "", "held_out": 1.0}},
    {"data.records": {"path": "http://x"}},
    {"data.records": {"path": "file:///x"}},
    {"data.npz": {"path": "a\x1b[0m"}},
    {"net.unheard_of": NAN},
    {"data.toy2d.anything": INF},
  ],
)
def test_every_factory_s_numbers_are_looked_at(values):
  with pytest.raises(ValueError, match=" must be |is a URL|characters") as error:
    declared.checked(record_with(**values))
  assert next(iter(values)).split(".")[0] in str(error.value).partition("=")[0]
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  "key", ["net", "loss", "samplers", "evals", "ema", "ema.main", "checkpoint"]
)
def test_a_value_in_the_place_of_a_section_is_one_line(key):
  with pytest.raises(ValueError, match=f"^config.{key}=3 must be a section"):
    declared.checked(record_with(**{key: 3}))


def test_values_become_what_is_meant_and_the_record_has_those():
  made = experiment.parse(
    record_with(**{"total_steps": 1e3, "batch_size": np.int64(16), "sigma_data": np.float32(0.5)})
  )
  assert (made.run.total_steps, made.run.batch_size, made.run.sigma_data) == (1000, 16, 0.5)
  for key in ("total_steps", "batch_size", "sigma_data"):
    assert type(made.record[key]) in (int, float)


def test_an_experiment_made_by_hand_is_checked_by_the_same_ranges():
  made = tiny.experiment_of()
  experiment.check(made)
  for field, value in {"seed": 2**32, "sigma_data": 0, "keep": 0, "loss_scale": NAN}.items():
    with pytest.raises(ValueError, match=f"{field}={value} must be"):
      experiment.check(made._replace(run=made.run._replace(**{field: value})))


def test_a_bucket_is_a_path_of_a_prepared_set_alone():
  declared.checked(record_with(**{"data.records": {"path": "gs://bucket/set", "vae": None}}))
  with pytest.raises(ValueError, match="data.records.vae='gs://b/v' is a URL"):
    declared.checked(record_with(**{"data.records": {"path": "x", "vae": "gs://b/v"}}))
