"""The Experiment: everything that a program needs, made once from a config.

  experiment = parse(config)
  experiment = experiment._replace(network=mine)

This is the only room where strings choose. A section of a config is a `name` and the keyword
arguments of what it names; everything a user can get wrong in one is found here, before anything
is compiled.
"""

from cmjax.experiment.decoding import decoder as decoder
from cmjax.experiment.evaluation import SearchScore as SearchScore
from cmjax.experiment.evaluation import due as due
from cmjax.experiment.evaluation import frechet_scores as frechet_scores
from cmjax.experiment.evaluation import image_batches as image_batches
from cmjax.experiment.evaluation import open_evaluators as open_evaluators
from cmjax.experiment.evaluation import real_samples as real_samples
from cmjax.experiment.evaluation import reference as reference
from cmjax.experiment.evaluation import scorer as scorer
from cmjax.experiment.evaluation import scorers as scorers
from cmjax.experiment.evaluation import search_score as search_score
from cmjax.experiment.fields import Evaluator as Evaluator
from cmjax.experiment.fields import Experiment as Experiment
from cmjax.experiment.fields import Frozen as Frozen
from cmjax.experiment.fields import Kept as Kept
from cmjax.experiment.fields import Method as Method
from cmjax.experiment.fields import Run as Run
from cmjax.experiment.fields import Sampler as Sampler
from cmjax.experiment.fields import Samples as Samples
from cmjax.experiment.fields import Setting as Setting
from cmjax.experiment.fields import Stored as Stored
from cmjax.experiment.lengths import too_long as too_long
from cmjax.experiment.methods import METHODS as METHODS
from cmjax.experiment.methods import Scene as Scene
from cmjax.experiment.methods import tangent_network as tangent_network
from cmjax.experiment.models import batches as batches
from cmjax.experiment.models import opened as opened
from cmjax.experiment.parse import Described as Described
from cmjax.experiment.parse import as_json as as_json
from cmjax.experiment.parse import check as check
from cmjax.experiment.parse import describe as describe
from cmjax.experiment.parse import parse as parse
from cmjax.experiment.parse import stored_record as stored_record
from cmjax.experiment.run import check_seed as check_seed
from cmjax.experiment.run import make_mesh as make_mesh
from cmjax.experiment.sampling import compiled_sampler as compiled_sampler
from cmjax.experiment.sections import call as call
from cmjax.experiment.sections import pick as pick
from cmjax.experiment.state import decays as decays
from cmjax.experiment.state import state_init as state_init
from cmjax.experiment.state import target_name as target_name
from cmjax.experiment.state import transformation as transformation
from cmjax.networks import grow as grow
