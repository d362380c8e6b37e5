"""Samplers: consistency models in one or more steps, diffusion teachers along their ODE or SDE.

All have one signature, `(net, params, key, shape, times, *, sigma_data, cond) -> x_0`: `net` is a
`NetFn`, `times` a decreasing sequence of angles known when the program is traced. Each evaluates
the network inside one `lax.scan`, so the program does not grow with the number of steps.

Consistency models: `consistency`, and `segments` for multistep ones. Diffusion models: `ddim`
(order 1, from pi/2 on), `dpmpp_2m` (order 2, one evaluation a step), `heun` (order 2, two), and
`stochastic`, which is `heun` with EDM's churn. Coefficients come from the host in float64.
"""

from cmjax.samplers.arguments import Times as Times
from cmjax.samplers.few_steps import alternate as alternate
from cmjax.samplers.few_steps import consistency as consistency
from cmjax.samplers.few_steps import refine as refine
from cmjax.samplers.few_steps import segments as segments
from cmjax.samplers.ode import ddim as ddim
from cmjax.samplers.ode import dpmpp_2m as dpmpp_2m
from cmjax.samplers.ode import heun as heun
from cmjax.samplers.ode import stochastic as stochastic
