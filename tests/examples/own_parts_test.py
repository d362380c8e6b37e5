"""The examples of users' own parts run, and what they add is there in the run."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import own_data
import own_equinox
import own_linen
import own_logger
import own_loss
import own_metric
import own_nnx
import pytest

from cmjax import experiment, pages, times
from cmjax.experiment import Frozen, Scene
from cmjax.program import stored_runs
from cmjax.types import Network

pytestmark = pytest.mark.usefixtures("shared_programs")
FLAGS = ["--config=toy2d_sct:smoke", "--steps=4"]


def test_the_lagrangian_residual_vanishes_at_the_flow_map_of_gaussian_data():
  """Data N(0, sigma_data^2) stay as they are: v = 0 and X(x, t, s) = x."""
  sigma_data = 0.5

  def apply(params, x, t, cond, key):
    angle = (t - cond["segment"])[:, None]
    # F = (cos(th) - 1) / sin(th) x, written so that it is 0 at th = 0; perturbed by params.
    return (params - 1.0) * jnp.tan(angle / 2) * x + (params**2) * jnp.sin(3 * angle) * x

  net = Network(lambda key: jnp.zeros(()), apply)
  loss_fn = own_loss.loss(net, times.lognormal(-1.0, 1.4, sigma_data=sigma_data), sigma_data=0.5)
  x0 = sigma_data * jax.random.normal(jax.random.key(0), (256, 3))
  errors = [
    loss_fn({"net": jnp.asarray(p)}, {"image": x0}, jax.random.key(1), 0)[1]["lagrangian_error"]
    for p in (0.0, 0.3)
  ]
  exact, wrong = (float(error.total / error.count) for error in errors)
  assert exact < 1e-10 < 1e-2 < wrong


@pytest.mark.slow
@pytest.mark.parametrize(
  "example", [own_nnx, own_linen, own_equinox], ids=["own_nnx", "own_linen", "own_equinox"]
)
def test_a_network_of_ones_own_trains_and_says_what_it_is(example, tmp_path):
  scores = example.main([f"--workdir={tmp_path}", *FLAGS])
  assert np.isfinite(scores["swd/one_step/main"]) and (tmp_path / "report.html").exists()
  assert "Mine" in stored_runs.read_record(tmp_path)["net"]["name"]
  assert "embed/kernel" in (parameters := (tmp_path / "parameters.txt").read_text()) or (
    "embed/weight" in parameters
  )


@pytest.mark.slow
def test_a_loss_of_ones_own_trains_and_samples_from_its_record_by_name(tmp_path):
  scores = own_loss.main([f"--workdir={tmp_path / 'python'}", *FLAGS])
  assert np.isfinite(scores["swd/one_step/main"])
  record = json.loads((tmp_path / "python" / "config.json").read_text())
  assert record["loss"] == {"name": "python:lagrangian"}
  config = pages.load("toy2d_sct:smoke").unlock()
  config.loss = dict(name="own_loss:lagrangian", P_mean=-1.0)
  with pytest.raises(ValueError, match="told its segment: net.segment=True"):
    experiment.check(experiment.parse(config))
  config.net.segment = True
  e = experiment.parse(config)
  experiment.check(e)
  by_hand = own_loss.lagrangian(Scene(0.5, (2,), 4), P_mean=-1.0)
  params = {"net": e.network.init(jax.random.key(0))}
  batch = {"image": jax.random.normal(jax.random.key(1), (8, 2))}
  values = [
    m.loss(e.network, Frozen())(params, batch, jax.random.key(2), 0)[0] for m in (e.method, by_hand)
  ]
  assert values[0] == values[1]


def test_data_of_ones_own_are_what_is_trained_on(tmp_path):
  own_data.main([f"--workdir={tmp_path}", *FLAGS])
  data = own_data.trefoil()
  points = data.take(np.arange(len(data)))["image"]
  assert points.std() == pytest.approx(0.5, rel=1e-3) and data[7]["label"] in (0, 1, 2)
  record = stored_runs.read_record(tmp_path)
  assert record["data"]["name"].startswith("python:own_data")
  with pytest.raises(ValueError, match="handed in from Python.*_replace.source=.*cmjax.base.parts"):
    stored_runs.read_experiment(tmp_path).source("train")


def test_a_metric_of_ones_own_is_scored_beside_the_others(tmp_path):
  scores = own_metric.main([f"--workdir={tmp_path}", *FLAGS])
  assert 0 <= scores["black/two_step/main"] <= 1
  assert json.loads((tmp_path / "scores.json").read_text()) == scores
  squares = np.array([[-0.8, -0.8], [-0.4, -0.4], [-0.8, -0.4], [3.0, 3.0]])
  assert own_metric.share_on_black(squares) == 0.5


def test_a_logger_of_ones_own_gets_what_is_recorded(tmp_path):
  own_logger.main([f"--workdir={tmp_path}", *FLAGS])
  rows = list(csv.DictReader((tmp_path / "loss.csv").read_text().splitlines()))
  recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  losses = {row["step"]: row["loss"] for row in recorded if "loss" in row}
  assert losses and {int(row["step"]): float(row["loss"]) for row in rows} == losses
