from .augment.multicrop import Views as Views
from .augment.multicrop import multicrop as multicrop
from .config import Config as Config
from .encoder.encoder import Encoder as Encoder
from .encoder.encoder import load_encoder as load_encoder
from .experiments import load_config as load_config
from .experiments import presets as presets
from .geometry import cell_diagonals as cell_diagonals
from .geometry import matching_threshold as matching_threshold
from .geometry import positions as positions
from .losses.objective import objective as objective
from .matching import Matches as Matches
from .matching import match_by_geometry as match_by_geometry
from .matching import match_by_similarity as match_by_similarity
from .weights.timm import export_backbone as export_backbone

__all__ = [
    "Config",
    "Encoder",
    "Matches",
    "Views",
    "cell_diagonals",
    "export_backbone",
    "load_config",
    "load_encoder",
    "match_by_geometry",
    "match_by_similarity",
    "matching_threshold",
    "multicrop",
    "objective",
    "positions",
    "presets",
]
