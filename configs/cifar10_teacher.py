r"""CIFAR-10, unconditional: the TrigFlow diffusion teacher of sCM (Lu & Song 2024, appendix G.1).

  python -m cmjax.main --config=configs/cifar10_teacher.py --workdir=runs/cifar10_teacher

Data through tfds (`pip install -e .[prepare]`, then `tfds build cifar10`), or an .npz with
train_images and test_images: --config.data.name=npz --config.data.npz.path=cifar10.npz

The paper: DDPM++ of 60.07 M parameters, 400k steps of 512, FID 2.15 at NFE 35. Not run by us; for
what we ran at a small size see docs/results. Differences: EDM's augmentation (p = 0.12) is not
there yet, only its horizontal flip; the network has the input for it, so that a run can take it up.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 400_000
  c.batch_size = 8 if smoke else 512
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="tfds", flip=True, tfds=dict(dataset="cifar10", data_dir=None),
    npz=dict(path="~/.cache/cmjax/cifar10.npz"), folder=dict(path="", held_out=0.0),
  )  # fmt: skip
  c.net = dict(
    name="ddpmpp", resolution=32, in_channels=3, channels=8 if smoke else 128,
    channel_mult=(1, 1, 1) if smoke else (2, 2, 2), num_blocks=1 if smoke else 4,
    attn_resolutions=(16,), dropout=0.13, num_classes=0, augment_dim=9,
    modulation="pnorm_scale_shift", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="learned")
  c.optim = dict(
    name="adam", lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=19_531),  # 10 M images
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(heun=dict(name="heun", num_steps=2 if smoke else 18))  # NFE 35
  c.evals = dict(
    grid=dict(name="samples", samplers=("heun",), emas=("main",), every_steps=10_000,
              num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("heun",), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
