"""From a config to functions: the only place where strings choose.

A section of a config is a `name` and the keyword arguments of what it names. Everything a user can
get wrong in one is found here, before anything is compiled.
"""

from cmjax.build.decoding import decoder as decoder
from cmjax.build.evaluation import evaluators as evaluators
from cmjax.build.evaluation import frechet_scores as frechet_scores
from cmjax.build.evaluation import image_batches as image_batches
from cmjax.build.evaluation import reference as reference
from cmjax.build.evaluation import scorer as scorer
from cmjax.build.evaluation import search_score as search_score
from cmjax.build.losses import loss as loss
from cmjax.build.losses import lpips_weights as lpips_weights
from cmjax.build.losses import target_name as target_name
from cmjax.build.models import batches as batches
from cmjax.build.models import can_remat as can_remat
from cmjax.build.models import network as network
from cmjax.build.models import source as source
from cmjax.build.sampling import sampler as sampler
from cmjax.build.sampling import sampler_nfe as sampler_nfe
from cmjax.build.sampling import sampling_net as sampling_net
from cmjax.build.sections import call as call
from cmjax.build.sections import latent_convention as latent_convention
from cmjax.build.sections import pick as pick
from cmjax.build.training import ema_decays as ema_decays
from cmjax.build.training import loss_scale as loss_scale
from cmjax.build.training import optimizer as optimizer
from cmjax.build.training import schedule as schedule
from cmjax.build.training import snapshots as snapshots
from cmjax.build.training import state_init as state_init
from cmjax.networks import grow as grow
