r"""Real digits, 8x8: the diffusion teacher (TrigFlow, v-prediction, learned weighting).

  python -m cmjax.main --config=configs/digits_teacher.py --workdir=runs/digits_teacher

The 1,442 training digits of scikit-learn (355 are held out). Two minutes on 2 CPU cores.
Pixel-space Frechet distance of 2,000 samples at NFE 35: expected about 0.05, got 0.053
(`make quickstart`, which trains digits_scd.py and digits_sct.py too).
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 10 if smoke else 800
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
  c.loss = dict(name="diffusion", P_mean=-0.4, P_std=1.2, weighting="learned")
  c.optim = dict(
    name="adam", lr=3e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=100),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=50_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(heun=dict(name="heun", num_steps=3 if smoke else 18))
  c.evals = dict(
    grid=dict(name="samples", samplers=("heun",), emas=("main",), every_steps=400,
              num_samples=64),
    fd=dict(name="frechet", features="pixels", samplers=("heun",), emas=("main",),
            num_samples=32 if smoke else 2_000, batch_size=16 if smoke else 500,
            every_steps=10_000),  # at the end
    speed=dict(name="throughput", samplers=("heun",), emas=("main",), num_batches=1,
               batch_size=16 if smoke else 500, every_steps=10_000),
  )  # fmt: skip
  c.log_every_steps = 50
  c.checkpoint = dict(every_steps=200, keep=2, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
