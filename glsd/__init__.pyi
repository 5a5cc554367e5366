from .augment.views import Views as Views
from .augment.views import multicrop as multicrop
from .config import Config as Config
from .config import load_config as load_config
from .config import presets as presets
from .evaluation.encoder import Encoder as Encoder
from .evaluation.encoder import load_encoder as load_encoder
from .evaluation.export import export_backbone as export_backbone
from .geometry import cell_diagonals as cell_diagonals
from .geometry import matching_threshold as matching_threshold
from .geometry import positions as positions
from .losses.total import objective as objective
from .matching import Matches as Matches
from .matching import match_by_geometry as match_by_geometry
from .matching import match_by_similarity as match_by_similarity

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
