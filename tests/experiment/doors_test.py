"""What may come in by a name, by an object, and what a stored record says of it afterwards."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from ml_collections import ConfigDict

from cmjax import experiment, times
from cmjax.base import sharding
from cmjax.experiment import Evaluator, Frozen, Method, Sampler, Stored, optimizers
from cmjax.program import sample, searched_times, stored_runs, train
from cmjax.types import Network
from helpers import own_parts, tiny
from helpers.losses import LOSSES

OWN = own_parts.NAME
pytestmark = pytest.mark.usefixtures("shared_programs")


def parsed(**sections):
  """The tiny experiment with whole sections replaced."""
  config = tiny.config().unlock()
  for key, value in sections.items():
    config[key] = ConfigDict(value) if isinstance(value, dict) else value
  return experiment.parse(config)


# --- optax by name --------------------------------------------------------------------------------

CONSTANT = dict(name="constant", warmup_steps=0)


def two_updates(tx, params, grads):
  state, moved = tx.init(params), params
  for _ in range(2):
    updates, state = tx.update(grads, state, moved)
    moved = optax.apply_updates(moved, updates)
  return moved


def some(tree, seed):
  draw = np.random.default_rng(seed).standard_normal
  return jax.tree.map(lambda a: jnp.asarray(draw(a.shape), jnp.float32), tree)


def test_sgd_is_a_step_against_the_gradient():
  given = parsed(optim=dict(name="sgd", lr=0.25, schedule=CONSTANT))
  params = some({"net": {"kernel": jnp.zeros((3, 4))}}, 0)
  grads = some(params, 1)
  moved = two_updates(experiment.transformation(given), params, grads)
  expected = jax.tree.map(lambda p, g: p - 0.25 * g - 0.25 * g, params, grads)
  jax.tree.map(np.testing.assert_array_equal, moved, expected)


def test_clip_norm_comes_first_whatever_the_optimizer():
  given = parsed(optim=dict(name="sgd", lr=0.25, clip_norm=2.0, schedule=CONSTANT))
  params = {"net": {"kernel": jnp.zeros((3, 4))}}
  grads = {"net": {"kernel": jnp.full((3, 4), 100.0)}}
  tx = experiment.transformation(given)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(optax.tree.norm(updates), 0.25 * 2.0, rtol=1e-6)


def test_muon_moves_a_matrix_by_a_nearly_orthogonal_one():
  given = parsed(optim=dict(name="muon", lr=0.1, beta=0.9, schedule=CONSTANT))
  params = some({"net": {"kernel": jnp.zeros((8, 5)), "bias": jnp.zeros(5)}}, 0)
  u, _, v = np.linalg.svd(np.random.default_rng(1).standard_normal((8, 5)), full_matrices=False)
  kernel = jnp.asarray(u * [30.0, 9.0, 3.0, 1.0, 0.5] @ v, jnp.float32)  # far from orthogonal
  grads = {"net": {"kernel": kernel, "bias": jnp.ones(5)}}
  tx = experiment.transformation(given)
  updates, _ = tx.update(grads, tx.init(params), params)
  sizes = np.linalg.svd(updates["net"]["kernel"], compute_uv=False)
  assert sizes.max() / sizes.min() < 2.5  # of the gradient: 60
  reference = optax.contrib.muon(0.1, beta=0.9)
  expected = two_updates(reference, params, grads)
  jax.tree.map(np.testing.assert_array_equal, two_updates(tx, params, grads), expected)


@pytest.mark.parametrize("name", ["sgd", "muon", "adam"])
def test_weights_of_unit_norm_are_there_after_the_update_of_any_optimizer(name):
  net = dict(name=f"{OWN}:Net", dim=2, dtype="float32")
  given = parsed(net=net, optim=dict(name=name, lr=0.5, schedule=CONSTANT))
  params = experiment.state_init(given)(jax.random.key(0)).params
  moved = two_updates(experiment.transformation(given), params, some(params, 3))
  kernel = lambda tree: tree["net"]["linear"]["kernel"]
  assert np.abs(kernel(moved) - kernel(params)).max() > 0.1
  size = lambda a: np.sqrt(np.mean(np.square(a), axis=0))
  np.testing.assert_allclose(size(kernel(moved)), size(kernel(params)), rtol=1e-3)
  assert np.abs(moved["net"]["linear"]["bias"] - params["net"]["linear"]["bias"]).max() > 0.1


@pytest.mark.parametrize(
  ("section", "expected"),
  [
    (
      dict(name="warmup_cosine_decay_schedule", init_value=0.0, warmup_steps=5, decay_steps=20),
      optax.warmup_cosine_decay_schedule(0.0, 0.02, 5, 20),
    ),
    (dict(name="cosine_decay_schedule", decay_steps=20), optax.cosine_decay_schedule(0.02, 20)),
    (
      dict(name="linear_schedule", end_value=0.0, transition_steps=20),
      optax.linear_schedule(0.02, 0.0, 20),
    ),
  ],
)
def test_a_schedule_of_optax_has_lr_as_its_peak(section, expected):
  given = parsed(optim=dict(name="sgd", lr=0.02, schedule=section))
  rates = [float(given.schedule(step)) for step in range(25)]
  assert rates == [float(expected(step)) for step in range(25)]
  assert max(rates) == pytest.approx(0.02, rel=1e-6)
  params = {"net": {"kernel": jnp.zeros(3)}}
  tx = experiment.transformation(given)
  updates, _ = tx.update({"net": {"kernel": jnp.ones(3)}}, tx.init(params), params)
  np.testing.assert_allclose(updates["net"]["kernel"], -rates[0], rtol=1e-6)


@pytest.mark.parametrize(
  ("optim", "message"),
  [
    (dict(name="sgd", lr=0.1, b1=0.9), r"optim .sgd. takes no b1. It takes: momentum, nesterov"),
    (
      dict(name="sgd", lr=0.1, schedule=dict(name="cosine_decay_schedule")),
      r"optim.schedule .cosine_decay_schedule. needs decay_steps. It takes: init_value, decay_st",
    ),
    (
      dict(name="sgd", lr=0.1, schedule=dict(name="cosine_decay_schedule", init_value=1.0)),
      r"optim.schedule .cosine_decay_schedule.: its init_value is optim.lr. Drop one of them",
    ),
  ],
)
def test_arguments_of_optax_are_checked_at_the_door(optim, message):
  with pytest.raises(ValueError, match=message):
    parsed(optim=dict(schedule=CONSTANT) | optim)


def test_ours_are_not_hidden_by_optax():
  assert {"adam", "radam"} <= optimizers.OPTAX_OPTIMIZERS.keys()
  with pytest.raises(ValueError, match="takes no nesterov. It takes: b1, b2, eps, clip_norm"):
    parsed(optim=dict(name="adam", lr=0.1, nesterov=True, schedule=CONSTANT))


# --- proposals and weightings as sections ---------------------------------------------------------


def loss_program(loss):
  """All that is computed of a loss section, as text."""
  given = parsed(loss=loss)
  params = jax.eval_shape(experiment.state_init(given), jax.random.key(0)).params

  def program(params, weights, batch, key):
    model = (given.network, weights) if given.method.distils else None
    return given.method.loss(given.network, Frozen(model))(params, batch, key, 3)

  batch = {"image": jax.ShapeDtypeStruct((16, 2), jnp.float32)}
  return str(jax.make_jaxpr(program)(params, params["net"], batch, jax.random.key(2)))


def loss_values(loss):
  """Every metric of a loss section at some weights, as bits."""
  given = parsed(loss=loss)
  params = experiment.state_init(given)(jax.random.key(0)).params
  params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
  batch = {"image": jax.random.normal(jax.random.key(1), (16, 2))}
  frozen = Frozen((given.network, params["net"]) if given.method.distils else None)
  loss_fn = jax.jit(given.method.loss(given.network, frozen))
  value, found = loss_fn(params, batch, jax.random.key(2), 3)
  return {"value": float(value)} | {name: float(mean.total) for name, mean in found.items()}


DIFFUSION = dict(name="diffusion", P_mean=-1.0, P_std=1.2, weighting="learned")


def with_proposal(section):
  """A section, and those inside it, with `proposal` for P_mean and P_std."""
  moved = {k: with_proposal(v) if isinstance(v, dict) else v for k, v in section.items()}
  if "P_mean" in moved:
    numbers = {key: moved.pop(key) for key in ("P_mean", "P_std")}
    moved["proposal"] = dict(name="lognormal", **numbers)
  return moved


@pytest.mark.parametrize(
  "loss", [DIFFUSION, LOSSES["semi_continuous"], LOSSES["dscm"], LOSSES["scd_vsd"]]
)
def test_a_lognormal_proposal_is_P_mean_and_P_std_bit_for_bit(loss):
  other = with_proposal(loss)
  assert "P_mean" not in other and loss_program(other) == loss_program(loss)
  shifted = other | {"proposal": other["proposal"] | {"P_mean": 0.5}}
  assert loss_program(shifted) != loss_program(loss)


def test_a_learned_weighting_has_the_channels_of_its_section():
  loss = DIFFUSION | dict(weighting=dict(name="learned", channels=64))
  params = experiment.state_init(parsed(loss=loss))(jax.random.key(0)).params
  assert params["weighting"]["kernel"].shape == (64,) and params["weighting"]["bias"] == 0.0
  assert loss_values(loss)["value"] != loss_values(DIFFUSION)["value"]
  scm = LOSSES["dscm"] | dict(weighting=dict(name="learned", channels=32))
  params = experiment.state_init(parsed(loss=scm))(jax.random.key(0)).params
  assert params["weighting"]["kernel"].shape == (32,)
  np.testing.assert_allclose(params["weighting"]["bias"], np.log(2.0), rtol=1e-6)


# --- names from outside ---------------------------------------------------------------------------

TINY = tiny.get_config().to_dict()
CT = LOSSES["ct"]
FRECHET = dict(
  name="frechet", samplers=("one_step",), emas=("main",), every_steps=6, num_samples=64,
  batch_size=32,
)  # fmt: skip
PLACES = {  # where a name stands -> the section of the config with another name there
  "net": lambda name: {"net": TINY["net"] | {"name": name}},
  "data": lambda name: {"data": {"name": name, "flip": False}},
  "loss": lambda name: {"loss": {"name": name}},
  "sampler": lambda name: {"samplers": TINY["samplers"] | {"one_step": {"name": name}}},
  "evaluator": lambda name: {"evals": {"x": FRECHET | {"name": name}}},
  "features": lambda name: {"evals": {"x": FRECHET | {"features": name}}},
  "optimizer": lambda name: {"optim": TINY["optim"] | {"name": name}},
  "schedule": lambda name: {"optim": TINY["optim"] | {"schedule": {"name": name}}},
  "average": lambda name: {"ema": TINY["ema"] | {"main": {"name": name}}},
  "weighting": lambda name: {"loss": TINY["loss"] | {"weighting": name}},
  "weighting section": lambda name: {"loss": TINY["loss"] | {"weighting": {"name": name}}},
  "proposal": lambda name: {"loss": TINY["loss"] | {"proposal": {"name": name}}},
  "tangent": lambda name: {"loss": TINY["loss"] | {"tangent": {"name": name}}},
  "pairs": lambda name: {"loss": CT | {"pairs": {"name": name}}},
  "curriculum": lambda name: {"loss": CT | {"curriculum": {"name": name}}},
  "distance": lambda name: {"loss": CT | {"distance": {"name": name}}},
}
OUTSIDE = {
  "os:system": "it is of Python's own library",
  "builtins:exec": "it is of Python's own library",
  "subprocess:run": "it is of Python's own library",
  "os.path:os.system": "it is of Python's own library",
  "cmjax.base.parts:sys.exit": "its author did not mark it",
  "cmjax.base.parts:importlib.import_module": "its author did not mark it",
  "numpy:load": "its author did not mark it",
  f"{OWN}:unmarked": "its author did not mark it",
  f"{OWN}:Unmarked": "its author did not mark it",
  f"{OWN}:nothing": "has no attribute 'nothing'",
  "no_such_package:Net": "is not loaded: to import no_such_package is to run it",
  "cmjax.convert.__main__:main": "is not loaded: to import cmjax.convert.__main__ is to run it",
  ":Net": "it is not of the form package.module:Name",
  "helpers..own_parts:Net": "it is not of the form package.module:Name",
}


def refused(read, message):
  with pytest.raises(ValueError) as stop:
    read()
  said = str(stop.value)
  assert message in said and "\n" not in said and len(said) < 400
  return said


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_from_outside_is_no_permission(name):
  assert repr(name) in refused(lambda: experiment.parse(TINY | PLACES["net"](name)), OUTSIDE[name])


@pytest.mark.parametrize("place", PLACES)
def test_no_place_of_a_config_takes_what_was_not_marked(place, tmp_path):
  unmarked = TINY | PLACES[place](f"{OWN}:unmarked")
  refused(lambda: experiment.parse(unmarked), "its author did not mark it")
  # A config that comes with a stranger's run is no other.
  (tmp_path / "config.json").write_text(json.dumps(TINY | PLACES[place]("os:system")))
  refused(lambda: stored_runs.read_experiment(tmp_path), "it is of Python's own library")


@pytest.mark.parametrize(
  ("place", "name", "message"),
  [
    ("net", "NoModule", "NoModule is a class of no library that cmjax knows. Take an NNX, Linen"),
    ("net", "source", "takes no depth, embed_channels, width. It takes: split, num"),
    ("loss", "source", "needs num. It takes: num"),
    ("loss", "Net", "needs rngs"),
    ("sampler", "detector", "needs shape. It takes: shape"),
  ],
)
def test_a_part_in_the_wrong_place_says_what_belongs_there(place, name, message):
  with pytest.raises(ValueError, match=message):
    experiment.parse(TINY | PLACES[place](f"{OWN}:{name}"))


# --- parts of one's own, by name ------------------------------------------------------------------

PARTS = dict(
  net=dict(name=f"{OWN}:Net", dim=2, offset=0.5, dtype="float32"),
  data=dict(name=f"{OWN}:source", flip=False, source=dict(num=64)),
  loss=dict(name=f"{OWN}:method", P_mean=-0.5),
  optim=dict(name=f"{OWN}:optimizer", lr=0.05, momentum=0.5, schedule=CONSTANT),
  samplers=dict(mine=dict(name=f"{OWN}:sampler", scale=0.5), heun=dict(name="heun", num_steps=3)),
  evals=dict(
    size=dict(
      name=f"{OWN}:evaluator", samplers=("mine",), emas=("main",), every_steps=6, num=32
    ),
    fd=FRECHET | dict(samplers=("mine",), features=f"{OWN}:detector"),
  ),
)  # fmt: skip


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
  """A run of parts of one's own, of 6 steps, and one of 12: workdirs, scores of the second."""
  folder = tmp_path_factory.mktemp("own")
  short = parsed(total_steps=6, **PARTS)
  train.train(short, folder / "short")
  return folder / "short", folder / "long", train.train(parsed(**PARTS), folder / "long")


def test_a_run_of_own_parts_trains_and_its_record_names_them(run):
  workdir, _, scores = run
  record = stored_runs.read_record(workdir)
  for key, section in PARTS.items():
    assert record[key] == experiment.as_json(section)
  assert np.isfinite(scores["size/mine/main"]) and scores["fd/mine/main"] > 0
  card = json.loads((workdir / "cards" / "fd_mine_main_step6.json").read_text())
  assert card["detector"] == {"name": "of mine", "shape": [2]} and card["score"] == "FD-mine"


def test_a_run_of_own_parts_goes_on_from_its_own_record_bit_for_bit(run):
  workdir, longer, scores = run
  given = stored_runs.read_experiment(workdir)
  given = given._replace(run=given.run._replace(total_steps=12))
  assert train.train(given, workdir) == scores
  tiny.assert_same(tiny.state(workdir), tiny.state(longer))


def test_a_run_of_own_parts_is_sampled_and_scored_by_its_own_record(run):
  _, workdir, scores = run
  given = stored_runs.read_experiment(workdir)
  picture, arrays = sample.sample(given, workdir, num_samples=4, name="mine", seed=0)
  assert picture.is_file()
  once = np.load(arrays)["samples"]
  config = stored_runs.read_record(workdir)
  config["samplers"]["mine"]["scale"] = 1.0
  again = sample.sample(experiment.parse(config), workdir, num_samples=4, name="mine", seed=0)
  np.testing.assert_allclose(np.load(again[1])["samples"], 2 * once, rtol=1e-6)
  text = sample.evaluate(given, workdir)
  assert f"size/mine/main: {scores['size/mine/main']:.5g}" in text
  stored = stored_runs.load_average(workdir, "main", sharding.make_mesh())
  assert stored[0].network.name == f"{OWN}:Net"


@pytest.mark.parametrize(
  "net",
  [
    dict(name=f"{OWN}:network", dim=2, dtype="bfloat16"),
    dict(name=f"{OWN}:LinenNet", dim=2, dtype="float32"),
  ],
)
def test_factories_and_other_libraries_train(net, tmp_path):
  given = parsed(net=net, evals={}, total_steps=2)
  assert given.network.options["dtype"] == net["dtype"]
  train.train(given, tmp_path)
  after, before = tiny.state(tmp_path), experiment.state_init(given)(jax.random.key(0))
  assert after.keys() == tiny.leaves(before).keys()
  again = stored_runs.read_experiment(tmp_path)
  assert again.network.name == net["name"] and again.network.options["dtype"] == net["dtype"]
  sample.sample(again, tmp_path, num_samples=2, name="one_step", seed=0)


# --- parts that are handed in ---------------------------------------------------------------------


def own_init(key):
  return {"a": jax.random.normal(key, (2, 2)), "b": jnp.zeros(2)}


def own_apply(params, x, t, cond, key):
  return x @ params["a"] + jnp.sin(t)[:, None] * params["b"][None]


NETWORK = Network(own_init, own_apply)
HANDED_IN = r"handed in from Python, .*Hand it in again: experiment._replace\({}="
DIFFUSES = dict(loss=DIFFUSION, evals={}, samplers=dict(heun=dict(name="heun", num_steps=3)))


@pytest.fixture(scope="module", name="handed")
def _handed(tmp_path_factory):
  """The run of a network that is two functions."""
  folder = tmp_path_factory.mktemp("handed")
  given = parsed(total_steps=4, **DIFFUSES)._replace(network=NETWORK)
  train.train(given, folder)
  return folder


def test_the_record_says_what_was_handed_in(handed):
  record = stored_runs.read_record(handed)
  assert record["net"] == {"dim": 2, "name": f"python:{__name__}:own_apply"}
  for key in ("loss", "data", "optim", "samplers", "ema"):
    assert record[key] == experiment.as_json(parsed(**DIFFUSES).record)[key]


def test_without_the_network_a_run_says_to_hand_it_in_again(handed, tmp_path):
  given = stored_runs.read_experiment(handed)
  again = HANDED_IN.format("network")
  with pytest.raises(ValueError, match=again):
    sample.sample(given, handed, num_samples=2, name=None, seed=0)
  with pytest.raises(ValueError, match=again):
    train.train(given._replace(run=given.run._replace(total_steps=6)), handed)
  with pytest.raises(ValueError, match=again):
    stored_runs.load_average(handed, "main", sharding.make_mesh())
  student = student_of(Stored(str(handed), "main"))
  with pytest.raises(ValueError, match=again + ".*as a teacher, teacher=.network, params."):
    train.train(student, tmp_path)
  # A page's own network is not put in its place.
  with pytest.raises(ValueError, match=f"net.name: python:{__name__}:own_apply in the checkpoint"):
    train.train(parsed(**DIFFUSES), handed)


def student_of(teacher):
  loss = dict(name="scd", tangent=dict(name="central"), **{
    key: value for key, value in LOSSES["central"].items() if key not in ("name", "tangent")
  })  # fmt: skip
  given = parsed(loss=loss, evals={}, total_steps=2)
  return given._replace(network=NETWORK, teacher=teacher, init_from=teacher)


def test_with_the_network_a_run_is_sampled_gone_on_with_and_teaches(handed, tmp_path):
  given = stored_runs.read_experiment(handed)._replace(network=NETWORK)
  _, arrays = sample.sample(given, handed, num_samples=2, name="heun", seed=0)
  before = stored_runs.load_average(handed, "main", sharding.make_mesh(), NETWORK)
  assert before[2] == 4
  draw = experiment.compiled_sampler(given, "heun", sharding.make_mesh())
  expected = draw(before[1], jax.random.key(0), np.arange(2))[1]
  np.testing.assert_allclose(np.load(arrays)["samples"], expected, rtol=1e-6)
  train.train(given._replace(run=given.run._replace(total_steps=6)), handed)
  teacher = stored_runs.load_average(handed, "main", sharding.make_mesh(), NETWORK)
  assert teacher[2] == 6
  student = student_of((NETWORK, teacher[1]))
  student = student._replace(tx=optax.sgd(0.0))
  train.train(student, tmp_path / "student")
  record = stored_runs.read_record(tmp_path / "student")
  assert record["optim"]["name"].startswith("python:") and record["teacher"]["workdir"] == ""
  restored = stored_runs.load_state(tmp_path / "student", sharding.make_mesh(), student)
  params = restored.state.params["net"]
  # Its rate is 0: it is where the model that was handed in is.
  jax.tree.map(np.testing.assert_array_equal, params, teacher[1])


def evaluate_nothing(averages, key):
  yield "answer", 42.0


def own_draw(net, params, keys, shape, cond):
  return jnp.full(shape, 0.25)


def own_loss(net, frozen):
  def loss_fn(params, batch, key, step):
    F = net.apply(params["net"], batch["image"], jnp.full(len(batch["image"]), 0.5), {}, None)
    return jnp.mean((F - 1) ** 2), {}

  return loss_fn


def own_source(split):
  return own_parts.source(split=split, num=64)


def decay(step):
  return 0.5


CHANGES = dict(
  method=Method("of mine", own_loss, label_dropout=0.125),
  source=own_source,
  tx=optax.sgd(0.1),
  averages={"mine": decay},
  samplers={"flat": Sampler(own_draw, 0)},
  evaluators={"answer": Evaluator(lambda setting: evaluate_nothing, ("flat",), ("mine",), 2)},
)


def test_every_part_can_be_handed_in_and_the_record_is_honest_about_each(tmp_path):
  given = parsed(total_steps=2)._replace(**CHANGES)
  assert train.train(given, tmp_path)["answer/answer"] == 42.0
  record = stored_runs.read_record(tmp_path)
  assert record["loss"]["name"] == "python:of mine" and record["loss"]["label_dropout"] == 0.125
  assert record["data"] == {"flip": False, "name": f"python:{__name__}:own_source"}
  assert record["optim"]["lr"] == 1e-2 and record["optim"]["name"].startswith("python:optax")
  assert record["ema"] == {"mine": {"name": f"python:{__name__}:decay"}}
  assert record["samplers"] == {"flat": {"name": f"python:{__name__}:own_draw"}}
  assert record["evals"]["answer"]["name"].startswith(f"python:{__name__}:")
  read = stored_runs.read_experiment(tmp_path)
  assert read.method.label_dropout == 0.125
  # One after the other: each that is missing says so, by its own name.
  for field in ("method", "source", "evaluators", "averages", "tx"):
    resumed = read._replace(**{key: v for key, v in CHANGES.items() if key != field})
    resumed = resumed._replace(run=read.run._replace(total_steps=4))
    with pytest.raises(ValueError, match=HANDED_IN.format(field)):
      train.train(resumed, tmp_path)
  with pytest.raises(ValueError, match="The sampler flat .*" + HANDED_IN.format("samplers")):
    changed = {key: value for key, value in CHANGES.items() if key != "samplers"}
    sample.sample(read._replace(**changed), tmp_path, num_samples=2, name="flat", seed=0)
  with pytest.raises(ValueError, match=HANDED_IN.format("method")):  # how is it sampled?
    sample.sample(read._replace(samplers=CHANGES["samplers"]), tmp_path, num_samples=2,
                  name="flat", seed=0)  # fmt: skip
  resumed = read._replace(**CHANGES, run=read.run._replace(total_steps=4))
  assert train.train(resumed, tmp_path)["answer/answer"] == 42.0
  _, arrays = sample.sample(resumed, tmp_path, num_samples=2, name="flat", seed=0)
  np.testing.assert_array_equal(np.load(arrays)["samples"], np.full((2, 2), 0.25, np.float32))


def test_numbers_and_places_that_were_changed_in_python_are_in_the_record():
  given = parsed()
  changed = given._replace(
    run=given.run._replace(seed=7, keep=5, on_spike="stop", flip=False),
    teacher=Stored("there", "short"),
  )
  record = experiment.stored_record(changed)
  assert (record["seed"], record["checkpoint"]["keep"], record["doctor"]["on_spike"]) == (
    7, 5, "stop",
  )  # fmt: skip
  assert record["teacher"] == {"workdir": "there", "ema": "short"}
  read = experiment.parse(record)
  assert read.run == changed.run and read.teacher == changed.teacher
  assert experiment.stored_record(given) == given.record
  assert experiment.stored_record(read) == read.record


def test_times_that_were_searched_are_in_the_record_and_the_network_keeps_its_name(tmp_path):
  (tmp_path / searched_times.FILE).write_text(json.dumps({"two_steps": {"mid_times": [0.7]}}))
  given = searched_times.use(parsed(), tmp_path, None)
  record = experiment.stored_record(given)
  assert record["samplers"]["two_steps"]["mid_times"] == (0.7,)
  assert record["samplers"]["one_step"] == given.record["samplers"]["one_step"]
  np.testing.assert_allclose(
    given.samplers["two_steps"].times, times.consistency_times(0.7, sigma_data=0.5)
  )
