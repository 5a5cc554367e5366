"""What a run looks like: figures, drawn with matplotlib."""

from glsd.reporting.figures import MatchedPair as MatchedPair
from glsd.reporting.figures import draw_crops as draw_crops
from glsd.reporting.figures import draw_matchings as draw_matchings
from glsd.reporting.figures import draw_neighbours as draw_neighbours
from glsd.reporting.figures import geometric_pair as geometric_pair
from glsd.reporting.figures import links as links
from glsd.reporting.figures import preview as preview
from glsd.reporting.figures import save_figure as save_figure
from glsd.reporting.figures import view_crops as view_crops
from glsd.reporting.figures import view_names as view_names

__all__ = [
    "MatchedPair",
    "draw_crops",
    "draw_matchings",
    "draw_neighbours",
    "geometric_pair",
    "links",
    "preview",
    "save_figure",
    "view_crops",
    "view_names",
]
