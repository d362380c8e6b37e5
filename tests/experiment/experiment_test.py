"""What a config can get wrong is said at the door, with the choices there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cmjax import experiment, weighting
from cmjax.base import sharding
from cmjax.commands import configs
from cmjax.data import pipeline
from cmjax.program import identity
from helpers import tiny

MESH = sharding.make_mesh(devices=jax.local_devices())


def build_all(config):
  """Everything of a config that `train` builds before it compiles."""
  given = experiment.parse(config)
  experiment.check(given)
  jax.eval_shape(experiment.state_init(given), jax.random.key(0))
  given.method.loss(given.network, experiment.Frozen())
  experiment.open_evaluators(given, MESH)
  experiment.batches(given, MESH, 0).close()


def changed(values):
  """The tiny config with values set, or, where they are `del`, removed."""
  config = tiny.config().unlock()
  for path, value in values.items():
    *above, key = path.split(".")
    section = config
    for name in above:
      section = section[name]
    if value is del_:
      del section[key]
    else:
      section[key] = value
  return config


del_ = object()
DDPMPP = ConfigDict(
  dict(
    name="ddpmpp", resolution=8, in_channels=1, channels=16, channel_mult=(1, 2), num_blocks=1,
    attn_resolutions=(), dropout=0.0, num_classes=0, augment_dim=0,
    modulation="pnorm_scale_shift", dtype="float32",
  )
)  # fmt: skip
FRECHET = dict(name="frechet", samplers=("one_step",), emas=("main",), every_steps=1)


def test_the_tiny_config_itself_builds():
  build_all(tiny.config())


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"loss.name": "sctt"},
      r"Unknown method .loss.name. 'sctt'. .*cd, .*ct_continuous, diffusion, scd, sct\.",
    ),
    (
      {"data.name": "mnits"},
      "data set .data.name. 'mnits'. .* cifar10, digits, fashion_mnist, folder, mnist, npz, rec",
    ),
    ({"net.name": "unet"}, "network .net.name. 'unet'. Choose from: adm, ddpmpp, dit, edm2, mlp"),
    (
      {"samplers.one_step.name": "euler"},
      "'euler'. Choose from: consistency, ddim, dpmpp_2m, heun, segments, stoch",
    ),
    ({"evals.swd.name": "fid"}, "'fid'. Choose from: frechet, samples, sliced_wasserstein"),
    ({"optim.name": "sgdm"}, "optimizer .optim.name. 'sgdm'. Choose from: adam, radam"),
    ({"optim.schedule.name": "cosine"}, "'cosine'. Choose from: constant, inverse_sqrt"),
    ({"loss.weighting": "snr"}, "'snr'. Choose from: constant, edm2, inverse_sigma, learned"),
    ({"loss.norm": "l1"}, "Unknown tangent norm 'l1'. Choose from: l2, rms"),
    ({"evals.swd": FRECHET | {"features": "vgg"}}, "'vgg'. Choose from: .*pixels"),
    ({"evals.grid.samplers": ("heun",)}, "'heun'. Choose from: one_step, two_steps"),
    ({"evals.grid.emas": ("long",)}, r"evals.grid.emas. 'long'. Choose from: main, short"),
    ({"data.toy2d.distribution": "moons"}, "'moons'. .* checkerboard, gaussian_mixture, two_sp"),
  ],
)
def test_an_unknown_name_lists_the_choices(values, message):
  with pytest.raises(ValueError, match=message):
    build_all(changed(values))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"net.widht": 3}, r"net .mlp. takes no widht. It takes: dim, width, depth, .*dropout"),
    ({"loss.cc": 1}, r"loss .sct. takes no cc. It takes: .*c, warmup_steps, norm"),
    ({"optim.momentum": 1}, r"optim .adam. takes no momentum. It takes: b1, b2, eps, clip_norm"),
    ({"optim.schedule.decay_steps": 1}, r"takes no decay_steps. It takes: warmup_steps"),
    ({"optim.schedule": ConfigDict({"name": "inverse_sqrt"})}, "needs decay_steps. It takes: dec"),
    (
      {"ema.main.half_life": 1},
      "ema.main .half_life. takes no half_life. It takes: half_life_images, ",
    ),
    (
      {"ema.main.half_life_images": del_},
      "ema.main .half_life. needs half_life_images. It takes: half_li",
    ),
    ({"ema": ConfigDict()}, "config.ema needs at least one average"),
    ({"data.toy2d.num": 1}, "data.toy2d takes no num. It takes: distribution, num_points, seed"),
    ({"data.toy2d.distribution": del_}, "data.toy2d needs distribution. It takes: distribution"),
    ({"samplers.one_step.steps": 2}, r"sampler .consistency. takes no steps. .* sigma_max"),
    ({"samplers.one_step.name": "heun"}, r"sampler .heun. needs num_steps. It takes: num_steps"),
    ({"evals.swd.n": 2}, r"evals.swd .sliced_wasserstein. takes no n. It takes: .*num_samples"),
    ({"evals.swd.num_samples": del_}, "needs num_samples. It takes: .*num_samples, batch_size"),
    # Those that belong to the section, not to what it names.
    ({"net.name": del_}, "config.net needs name, dtype; not there: name"),
    ({"net.dtype": del_}, "config.net needs name, dtype; not there: dtype"),
    ({"data.flip": del_}, "config.data needs name, flip; not there: flip"),
    ({"loss.P_mean": del_}, "config.loss needs name, P_mean, P_std, weighting; not there: P_mean"),
    ({"loss.weighting": del_}, "weighting .*Choose from: constant, edm2, inverse_sigma, learned"),
    ({"optim.lr": del_}, "config.optim needs name, lr, schedule; not there: lr"),
    ({"evals.swd.emas": del_}, "config.evals.swd needs name, .*samplers, emas; not there: emas"),
  ],
)
def test_a_wrong_or_missing_argument_lists_the_right_ones(values, message):
  with pytest.raises(ValueError, match=message):
    build_all(changed(values))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"batch_size": 20}, "batch_size=20 must be a multiple of the 8 devices. Nearest: 16"),
    ({"net.dim": 3}, r"'toy2d' has samples of shape \(2,\), but net takes \(3,\). Set .*net.dim"),
    ({"net": DDPMPP}, r"shape \(2,\), but net takes \(8, 8, 1\). Set net.resolution and net.in"),
    ({"net.num_classes": 3}, "net.num_classes=3 but data 'toy2d' has no classes. .*num_classes=0"),
    ({"data.flip": True}, r"flip=True mirrors images .*Set flip=False"),
    ({"loss.name": "scd"}, "loss.name='scd' distils a teacher: set teacher.workdir"),
    ({"loss.P_std": 0.0}, "P_std=0.0 must be positive"),
    ({"ema.main.half_life_images": 0}, "half_life_images=0 must be positive"),
  ],
)
@pytest.mark.devices
def test_parts_that_do_not_fit_each_other_say_what_would(values, message):
  with pytest.raises(ValueError, match=message):
    build_all(changed(values))


def test_an_image_size_that_the_unet_cannot_halve_names_the_nearest():
  net = ConfigDict(dict(DDPMPP) | {"resolution": 6, "channel_mult": (1, 1, 1)})
  with pytest.raises(ValueError, match="resolution=6 cannot be halved 2 times.*Nearest: 8"):
    experiment.parse(changed({"net": net}))


def test_labels_reach_a_conditional_network_and_no_other():
  values = {"net": ConfigDict(dict(DDPMPP) | {"num_classes": 10}), "data.name": "digits"}
  config = changed(values | {"batch_size": 8})
  batch = next(batches := experiment.batches(experiment.parse(config), MESH, 0))
  batches.close()
  assert batch["image"].shape == (8, 8, 8, 1) and batch["label"].shape == (8,)
  config.net.num_classes = 0
  batch = next(batches := experiment.batches(experiment.parse(config), MESH, 0))
  batches.close()
  assert batch.keys() == {"image"}
  config.net.num_classes = 7
  with pytest.raises(ValueError, match="net.num_classes=7 but data 'digits' has 10 classes"):
    experiment.opened(experiment.parse(config))


def test_batches_start_where_they_are_asked_to():
  given = tiny.experiment_of()
  from_0, from_2 = (experiment.batches(given, MESH, start) for start in (0, 2))
  expected = [np.asarray(next(from_0)["image"]) for _ in range(3)]
  np.testing.assert_array_equal(next(from_2)["image"], expected[2])
  from_0.close()
  from_2.close()


def test_a_learned_weighting_starts_where_a_tangent_of_unit_norm_has_unit_weight():
  # exp(w) / D ||g / ||g||||^2 = exp(w) / D, whose optimum is w = log D.
  for values, bias in [({}, np.log(2.0)), ({"loss.norm": "rms"}, 0.0)]:
    state = experiment.state_init(experiment.parse(changed(values)))(jax.random.key(0))
    w = weighting.learned().apply(state.params["weighting"], jnp.full(4, 0.7))
    np.testing.assert_allclose(w, bias, rtol=1e-6)


@pytest.mark.parametrize(
  ("section", "nfe"),
  [
    (dict(name="consistency"), 1),
    (dict(name="consistency", mid_times=(1.1,)), 2),
    (dict(name="ddim", num_steps=18), 18),
    (dict(name="heun", num_steps=18), 35),
  ],
)
def test_a_sampler_costs_its_network_evaluations(section, nfe):
  given = experiment.parse(changed({"samplers.x": ConfigDict(section)}))
  assert given.samplers["x"].nfe == nfe


def test_a_tangent_has_the_precision_of_its_own_and_the_network_keeps_its():
  """F_error and the gradient's F of the bfloat16 network, ||g|| of the float32 one, to the bit."""

  def metrics(**values):
    given = experiment.parse(changed({f"{k.replace('__', '.')}": v for k, v in values.items()}))
    params = experiment.state_init(given)(jax.random.key(0)).params
    params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    batch = {"image": jax.random.normal(jax.random.key(1), (16, 2))}
    loss = given.method.loss(given.network, experiment.Frozen())
    found = loss(params, batch, jax.random.key(2), 10)[1]
    return {name: float(mean.total) for name, mean in found.items()}

  wide, narrow = metrics(net__dtype="float32"), metrics(net__dtype="bfloat16")
  tangent = {"name": "exact", "dtype": "float32", "matmul_precision": "highest"}
  mixed = metrics(net__dtype="bfloat16", loss__tangent=tangent)
  assert wide["tangent_norm"] != narrow["tangent_norm"] and wide["F_error"] != narrow["F_error"]
  assert mixed["tangent_norm"] == wide["tangent_norm"]
  assert mixed["F_error"] == narrow["F_error"]


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ({}, True),
    ({"loss.tangent": {"name": "exact"}}, True),
    ({"loss.tangent": {"name": "exact", "dtype": "float32", "matmul_precision": None}}, True),
    ({"loss.tangent": {"name": "exact", "matmul_precision": "highest"}}, False),
    ({"net.dtype": "float16", "loss.tangent": {"name": "exact", "dtype": "float32"}}, False),
  ],
)
def test_a_step_has_a_second_pass_only_where_the_precisions_differ(values, expected):
  given = experiment.parse(changed(values))
  second = experiment.tangent_network(given.network, given.method.tangent)
  assert (second is None) == expected


def test_how_data_are_read_ahead_can_be_set_and_is_no_part_of_what_a_run_is():
  plain = experiment.parse(tiny.config())
  assert (plain.run.read_threads, plain.run.prefetch) == (2, 4)
  config = tiny.config().unlock()
  config.data.threads, config.data.prefetch = 16, 32
  given = experiment.parse(config)
  assert (given.run.read_threads, given.run.prefetch) == (16, 32)
  assert identity.digest(experiment.stored_record(given)) == identity.digest(
    experiment.stored_record(plain)
  )
  seen = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline, "batches", lambda *args, **options: seen.update(options) or iter(()))
    experiment.batches(given, MESH, 0)
  assert seen == {"start": 0, "num_threads": 16, "prefetch": 32}
  typed = tiny.config()
  assert configs.override(typed, ["--config.data.threads=8"]) == []
  assert experiment.parse(typed).run.read_threads == 8
  with pytest.raises(ValueError, match="data.threads=-1"):
    configs.override(typed, ["--config.data.threads=-1"])
