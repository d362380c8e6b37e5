"""A loss section for every method, small enough for the tests."""

SCM = dict(P_mean=-1.0, P_std=1.4, weighting="learned", c=0.1, warmup_steps=10, norm="l2")


ADAM = dict(
  name="adam", lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
  schedule=dict(name="constant", warmup_steps=0),
)  # fmt: skip


VSD = dict(lambda_vsd=1.0, P_mean=0.4, P_std=2.0, fake=dict(P_mean=-1.0, P_std=1.4, optim=ADAM))


CM = dict(sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"))


SQUARE_ROOT = dict(name="square_root", total_steps=12, s0=2, s1=20)


LOSSES = {
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
  "ct_continuous": dict(name="ct_continuous", sigma_min=0.002, distance=dict(name="squared_l2")),
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
