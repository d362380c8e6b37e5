"""What all pages share: where a run starts, how its samples are drawn, logged, kept and watched."""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  c = mlc.ConfigDict()
  c.seed = 0
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.init_from = dict(workdir="", ema="main")  # random weights
  c.teacher = dict(workdir="", ema="main")  # none

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_times=(1.1,)),  # an angle; sigma 0.98 if sigma_data = 0.5
  )
  c.log_every_steps = 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
