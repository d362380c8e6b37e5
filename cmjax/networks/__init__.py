"""Flax NNX modules, the adapter which turns one into a `cmjax.types.Network`, and warm starts."""

from cmjax.networks.adapter import as_network as as_network
from cmjax.networks.adm import ADM as ADM
from cmjax.networks.autoencoder import autoencoder_kl as autoencoder_kl
from cmjax.networks.ddpmpp import DDPMpp as DDPMpp
from cmjax.networks.dit import DiT as DiT
from cmjax.networks.edm2 import EDM2 as EDM2
from cmjax.networks.magnitude import normalize_kernel as normalize_kernel
from cmjax.networks.mlp import MLP as MLP
from cmjax.networks.transfer import grow as grow
