"""Which images there are, in which order they come, and their pixels."""

from glsd.data.images import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS
from glsd.data.images import UndecodableImage as UndecodableImage
from glsd.data.images import decode as decode
from glsd.data.images import extension as extension
from glsd.data.images import fitting_value_range as fitting_value_range
from glsd.data.images import header_size as header_size
from glsd.data.index import Index as Index
from glsd.data.index import Place as Place
from glsd.data.index import build_index as build_index
from glsd.data.order import Order as Order
from glsd.data.order import permutation as permutation
from glsd.data.regimes import regime as regime
from glsd.data.regimes import subset as subset
from glsd.data.regimes import write_subset as write_subset
from glsd.data.scenes import Scene as Scene
from glsd.data.scenes import read_scenes as read_scenes
from glsd.data.sources import CLASS_NAMES as CLASS_NAMES
from glsd.storage.cache import cache_folder as cache_folder

__all__ = [
    "CLASS_NAMES",
    "IMAGE_EXTENSIONS",
    "Index",
    "Order",
    "Place",
    "Scene",
    "UndecodableImage",
    "build_index",
    "cache_folder",
    "decode",
    "extension",
    "fitting_value_range",
    "header_size",
    "permutation",
    "read_scenes",
    "regime",
    "subset",
    "write_subset",
]
