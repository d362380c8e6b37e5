"""Networks in Flax NNX, adapters from modules to `cmjax.types.Network`, and warm starts."""

from cmjax.networks.adapters import from_equinox as from_equinox
from cmjax.networks.adapters import from_linen as from_linen
from cmjax.networks.adapters import from_nnx as from_nnx
from cmjax.networks.adapters import from_part as from_part
from cmjax.networks.adm import ADM as ADM
from cmjax.networks.autoencoder import autoencoder_kl as autoencoder_kl
from cmjax.networks.ddpmpp import DDPMpp as DDPMpp
from cmjax.networks.dit import DiT as DiT
from cmjax.networks.edm2 import EDM2 as EDM2
from cmjax.networks.magnitude import normalize_kernel as normalize_kernel
from cmjax.networks.mlp import MLP as MLP
from cmjax.networks.transfer import grow as grow
