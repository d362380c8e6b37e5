"""Flax NNX modules, the adapter which turns one into a `cmjax.types.Network`, and warm starts."""

from cmjax.networks.adapter import as_network as as_network
from cmjax.networks.ddpmpp import DDPMpp as DDPMpp
from cmjax.networks.mlp import MLP as MLP
from cmjax.networks.transfer import grow as grow
