r"""Real digits, 8x8: consistency training in discrete time (CT; Song et al. 2023).

  python -m cmjax.main --config=configs/digits_ct.py --workdir=runs/digits_ct

Squared l2 distance, N(k) from 2 to 30 levels by the paper's square-root curriculum (150 there, in
800k steps), a target network with the paper's adaptive average, weight 1. From random weights, as
in the paper: --config.init_from.workdir=runs/digits_teacher starts from the teacher.

The rate is that of digits_ict.py. CT bears more (`comparison/rates.py`, one step, classifier
features): five times as much gives 26 for 35 as it is, a fifth 42. Neither comes near the others.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 10 if smoke else 600
  c.batch_size = 16 if smoke else 128
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.75  # --mode=measure says 0.752

  c.data = dict(name="digits", flip=False)
  c.net = dict(
    name="ddpmpp", resolution=8, in_channels=1, channels=16, channel_mult=(1, 2), num_blocks=1,
    attn_resolutions=(4,), dropout=0.0, num_classes=0, augment_dim=0,
    modulation="pnorm_scale_shift", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"),
    pairs=dict(name="uniform"),
    curriculum=dict(name="square_root", total_steps=c.total_steps, s0=2, s1=30),
    target=dict(name="curriculum", mu0=0.9, convention="paper"),
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  # Half as long an average is within 6 %, three times as long costs up to 25 % (docs/results).
  c.ema = dict(main=dict(name="half_life", half_life_images=50_000, rampup_ratio=0.1))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_times=(1.1,)),
  )
  both = ("one_step", "two_step")
  c.evals = dict(
    grid=dict(name="samples", samplers=both, emas=("main",), every_steps=300,
              num_samples=64),
    fd=dict(name="frechet", features="pixels", samplers=both, emas=("main",),
            num_samples=32 if smoke else 2_000, batch_size=16 if smoke else 500,
            every_steps=10_000),  # at the end
    speed=dict(name="throughput", samplers=both, emas=("main",), num_batches=1,
               batch_size=16 if smoke else 500, every_steps=10_000),
  )  # fmt: skip
  c.log_every_steps = 50
  c.checkpoint = dict(every_steps=200, keep=2, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
