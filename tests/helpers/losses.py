"""A small config of every method: the loss of its page of digits, on points in the plane.

A new method is here as soon as it has a page. What tests want of a method beside what its page has
is in `OWN`.
"""

import ml_collections as mlc

from cmjax import experiment, pages
from helpers import tiny

PAGES = "digits_"

SCM = dict(P_mean=-1.0, P_std=1.4, weighting="learned", c=0.1, warmup_steps=10, norm="l2")


ADAM = dict(
  name="adam", lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
  schedule=dict(name="constant", warmup_steps=0),
)  # fmt: skip


VSD = dict(lambda_vsd=1.0, P_mean=0.4, P_std=2.0, fake=dict(P_mean=-1.0, P_std=1.4, optim=ADAM))


CM = dict(sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"))


SQUARE_ROOT = dict(name="square_root", total_steps=12, s0=2, s1=20)


OWN = {
  "ct": dict(
    name="ct", pairs=dict(name="uniform"), curriculum=SQUARE_ROOT,
    target=dict(name="curriculum", mu0=0.9, convention="openai"), **CM,
  ),
  "cd": dict(
    name="cd", pairs=dict(name="uniform"), curriculum=dict(name="fixed", N=18), solver="heun",
    target=dict(name="constant", beta=0.95), **CM,
  ),
  "ict": dict(
    name="ct", pairs=dict(name="lognormal", P_mean=-1.1, P_std=2.0),
    curriculum=dict(name="doubling", total_steps=12, s0=10, s1=80),
    target=dict(name="current"), sigma_min=0.002, weight="inverse_gap",
    distance=dict(name="pseudo_huber"),
  ),
  "ect": dict(
    name="ct", sigma_min=0.0, weight="inverse_gap", distance=dict(name="l2"),
    pairs=dict(name="ect", P_mean=-1.1, P_std=2.0, steps_per_stage=3, num_stages=4),
  ),
  "cd_continuous": dict(
    name="cd_continuous", sigma_min=0.002, distance=dict(name="l1"), stop_gradient=False
  ),
  "dscm": dict(name="sct", tangent=dict(name="discrete", num_levels=64), **SCM),
  "dscd": dict(name="scd", tangent=dict(name="discrete", num_levels=64), **SCM),
  "central": dict(name="scd", tangent=dict(name="central"), **SCM),
  "semi_continuous": dict(name="sct", tangent=dict(name="semi_continuous"), **SCM),
  "scd_vsd": dict(name="scd", vsd=VSD, **SCM),
  "scd_multistep": dict(name="scd", num_segments=2, **SCM),
}  # fmt: skip


def of_pages() -> dict[str, dict]:
  """{method: the loss of its page, shortened}."""
  names = [name for name in pages.names() if name.startswith(PAGES)]
  load = lambda name: pages.load(f"{name}:smoke").loss.to_dict()
  return {name.removeprefix(PAGES): load(name) for name in names}


LOSSES = of_pages() | OWN


def configure(name: str, teacher: str = "somewhere") -> mlc.ConfigDict:
  """The tiny config with a method's loss, and the teacher and the network that it asks for."""
  config = tiny.config().unlock()
  config.loss = mlc.ConfigDict(LOSSES[name])
  method = experiment.parse(config).method
  if method.distils:
    config.teacher.workdir = str(teacher)
  for part in method.needs:
    config.net[part] = True
  if method.label_dropout or method.teacher_needs_no_class:
    config.net.num_classes = 3
  return config
