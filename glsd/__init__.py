"""Global-Local Self-Distillation (WACV 2023) as a library: pure functions over tensors and small frozen records.

A name is imported when it is first used, so that CPU workers, which decode and augment, load no models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glsd.augment.views import Views as Views
    from glsd.augment.views import multicrop as multicrop
    from glsd.config import Config as Config
    from glsd.config import load_config as load_config
    from glsd.config import presets as presets
    from glsd.evaluation.encoder import Encoder as Encoder
    from glsd.evaluation.encoder import load_encoder as load_encoder
    from glsd.evaluation.export import export_backbone as export_backbone
    from glsd.geometry import cell_diagonals as cell_diagonals
    from glsd.geometry import matching_threshold as matching_threshold
    from glsd.geometry import positions as positions
    from glsd.losses.total import objective as objective
    from glsd.matching import Matches as Matches
    from glsd.matching import match_by_geometry as match_by_geometry
    from glsd.matching import match_by_similarity as match_by_similarity

_ROOMS = {
    "Config": "config",
    "Encoder": "evaluation",
    "Matches": "matching",
    "Views": "augment",
    "cell_diagonals": "geometry",
    "export_backbone": "evaluation",
    "load_config": "config",
    "load_encoder": "evaluation",
    "match_by_geometry": "matching",
    "match_by_similarity": "matching",
    "matching_threshold": "geometry",
    "multicrop": "augment",
    "objective": "losses",
    "positions": "geometry",
    "presets": "config",
}

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


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"glsd.{_ROOMS[name]}"), name)
