"""From a config to functions: the only place where strings choose.

A section of a config is a `name` and the keyword arguments of what it names. Everything a user can
get wrong in one is found here, before anything is compiled.
"""

from cmjax.experiment.decoding import decoder as decoder
from cmjax.experiment.evaluation import evaluators as evaluators
from cmjax.experiment.evaluation import frechet_scores as frechet_scores
from cmjax.experiment.evaluation import image_batches as image_batches
from cmjax.experiment.evaluation import reference as reference
from cmjax.experiment.evaluation import scorer as scorer
from cmjax.experiment.evaluation import search_score as search_score
from cmjax.experiment.losses import loss as loss
from cmjax.experiment.losses import lpips_weights as lpips_weights
from cmjax.experiment.losses import target_name as target_name
from cmjax.experiment.models import batches as batches
from cmjax.experiment.models import can_remat as can_remat
from cmjax.experiment.models import network as network
from cmjax.experiment.models import source as source
from cmjax.experiment.sampling import sampler as sampler
from cmjax.experiment.sampling import sampler_nfe as sampler_nfe
from cmjax.experiment.sampling import sampling_net as sampling_net
from cmjax.experiment.sections import call as call
from cmjax.experiment.sections import latent_convention as latent_convention
from cmjax.experiment.sections import pick as pick
from cmjax.experiment.training import ema_decays as ema_decays
from cmjax.experiment.training import loss_scale as loss_scale
from cmjax.experiment.training import optimizer as optimizer
from cmjax.experiment.training import schedule as schedule
from cmjax.experiment.training import snapshots as snapshots
from cmjax.experiment.training import state_init as state_init
from cmjax.networks import grow as grow
