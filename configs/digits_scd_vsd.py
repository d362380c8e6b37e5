r"""Real digits, 8x8: sCD with adaptive variational score distillation beside it.

  python -m cmjax.main --config=configs/digits_scd_vsd.py --workdir=runs/digits_scd_vsd

Train digits_teacher.py in runs/digits_teacher first. A fake-score network of the same shape is
trained 1:1 with the student, by its own optimizer (sCM, appendix C).

Why these settings (`comparison/rates.py`, one step, classifier features, 2.4 as it is): a fifth of
the rate gives 10, five times as much breaks it (22), no warm-up of the tangent gives 3.3.
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
    name="scd", P_mean=-0.4, P_std=1.6, c=0.1, warmup_steps=100, norm="l2", weighting="learned",
    vsd=dict(
      lambda_vsd=1.0, P_mean=0.4, P_std=2.0,
      fake=dict(
        P_mean=-0.4, P_std=1.6,
        optim=dict(
          name="adam", lr=1.5e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
          schedule=dict(name="inverse_sqrt", decay_steps=60, warmup_steps=20),
        ),
      ),
    ),
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1.5e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=60, warmup_steps=20),
  )  # fmt: skip
  # Half as long an average is within 6 %, three times as long costs up to 25 % (docs/results).
  c.ema = dict(main=dict(name="half_life", half_life_images=50_000, rampup_ratio=0.1))
  c.init_from = dict(workdir="runs/digits_teacher", ema="main")
  c.teacher = dict(workdir="runs/digits_teacher", ema="main")

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
