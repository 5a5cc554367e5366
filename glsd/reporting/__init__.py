"""What a run looks like: figures drawn with matplotlib, tables, and pages of HTML.

A name is imported when it is first used: a report needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glsd.reporting.canvas import save_figure as save_figure
    from glsd.reporting.canvas import save_png_and_svg as save_png_and_svg
    from glsd.reporting.charts import Chart as Chart
    from glsd.reporting.charts import Line as Line
    from glsd.reporting.charts import line_chart as line_chart
    from glsd.reporting.charts import number_text as number_text
    from glsd.reporting.correspondences import Correspondences as Correspondences
    from glsd.reporting.correspondences import correspondence_links as correspondence_links
    from glsd.reporting.correspondences import draw_correspondences as draw_correspondences
    from glsd.reporting.correspondences import top_correspondences as top_correspondences
    from glsd.reporting.crops import draw_crops as draw_crops
    from glsd.reporting.crops import view_crops as view_crops
    from glsd.reporting.crops import view_names as view_names
    from glsd.reporting.curves import draw_collapse as draw_collapse
    from glsd.reporting.curves import draw_curves as draw_curves
    from glsd.reporting.feature_map import Components as Components
    from glsd.reporting.feature_map import draw_feature_map as draw_feature_map
    from glsd.reporting.feature_map import principal_components as principal_components
    from glsd.reporting.feature_map import umap_available as umap_available
    from glsd.reporting.html import Badge as Badge
    from glsd.reporting.html import Bar as Bar
    from glsd.reporting.html import Bars as Bars
    from glsd.reporting.html import Block as Block
    from glsd.reporting.html import Charts as Charts
    from glsd.reporting.html import Code as Code
    from glsd.reporting.html import Details as Details
    from glsd.reporting.html import Facts as Facts
    from glsd.reporting.html import FigureBlock as FigureBlock
    from glsd.reporting.html import Page as Page
    from glsd.reporting.html import Points as Points
    from glsd.reporting.html import Prose as Prose
    from glsd.reporting.html import Section as Section
    from glsd.reporting.html import Table as Table
    from glsd.reporting.html import Tiles as Tiles
    from glsd.reporting.html import picture_uri as picture_uri
    from glsd.reporting.html import share_text as share_text
    from glsd.reporting.image_preview import preview as preview
    from glsd.reporting.matchings import MatchedPair as MatchedPair
    from glsd.reporting.matchings import draw_matchings as draw_matchings
    from glsd.reporting.matchings import geometric_pair as geometric_pair
    from glsd.reporting.matchings import links as links
    from glsd.reporting.matchings import similarity_pair as similarity_pair
    from glsd.reporting.neighbours import draw_neighbours as draw_neighbours
    from glsd.reporting.regimes import Mean as Mean
    from glsd.reporting.regimes import axis_name as axis_name
    from glsd.reporting.regimes import draw_comparison as draw_comparison
    from glsd.reporting.regimes import draw_regimes as draw_regimes
    from glsd.reporting.regimes import draw_trial_curves as draw_trial_curves
    from glsd.reporting.regimes import regime_means as regime_means
    from glsd.reporting.tables import Comparison as Comparison
    from glsd.reporting.tables import axis_text as axis_text
    from glsd.reporting.tables import comparison as comparison
    from glsd.reporting.tables import latex_table as latex_table
    from glsd.reporting.tables import markdown_table as markdown_table
    from glsd.reporting.tables import seed_differences as seed_differences
    from glsd.reporting.tables import seed_summary as seed_summary
    from glsd.reporting.tables import table_cells as table_cells
    from glsd.reporting.tables import tidy_table as tidy_table
    from glsd.reporting.tables import varied as varied
    from glsd.reporting.tables import write_tables as write_tables

_MODULES = {
    "Badge": "html",
    "Bar": "html",
    "Bars": "html",
    "Block": "html",
    "Chart": "charts",
    "Charts": "html",
    "Code": "html",
    "Comparison": "tables",
    "Components": "feature_map",
    "Correspondences": "correspondences",
    "Details": "html",
    "Facts": "html",
    "FigureBlock": "html",
    "Line": "charts",
    "MatchedPair": "matchings",
    "Mean": "regimes",
    "Page": "html",
    "Points": "html",
    "Prose": "html",
    "Section": "html",
    "Table": "html",
    "Tiles": "html",
    "axis_name": "regimes",
    "axis_text": "tables",
    "comparison": "tables",
    "correspondence_links": "correspondences",
    "draw_collapse": "curves",
    "draw_comparison": "regimes",
    "draw_correspondences": "correspondences",
    "draw_crops": "crops",
    "draw_curves": "curves",
    "draw_feature_map": "feature_map",
    "draw_matchings": "matchings",
    "draw_neighbours": "neighbours",
    "draw_regimes": "regimes",
    "draw_trial_curves": "regimes",
    "geometric_pair": "matchings",
    "latex_table": "tables",
    "line_chart": "charts",
    "links": "matchings",
    "markdown_table": "tables",
    "number_text": "charts",
    "picture_uri": "html",
    "preview": "image_preview",
    "principal_components": "feature_map",
    "regime_means": "regimes",
    "save_figure": "canvas",
    "save_png_and_svg": "canvas",
    "seed_differences": "tables",
    "seed_summary": "tables",
    "share_text": "html",
    "similarity_pair": "matchings",
    "table_cells": "tables",
    "tidy_table": "tables",
    "top_correspondences": "correspondences",
    "umap_available": "feature_map",
    "varied": "tables",
    "view_crops": "crops",
    "view_names": "crops",
    "write_tables": "tables",
}

__all__ = [
    "Badge",
    "Bar",
    "Bars",
    "Block",
    "Chart",
    "Charts",
    "Code",
    "Comparison",
    "Components",
    "Correspondences",
    "Details",
    "Facts",
    "FigureBlock",
    "Line",
    "MatchedPair",
    "Mean",
    "Page",
    "Points",
    "Prose",
    "Section",
    "Table",
    "Tiles",
    "axis_name",
    "axis_text",
    "comparison",
    "correspondence_links",
    "draw_collapse",
    "draw_comparison",
    "draw_correspondences",
    "draw_crops",
    "draw_curves",
    "draw_feature_map",
    "draw_matchings",
    "draw_neighbours",
    "draw_regimes",
    "draw_trial_curves",
    "geometric_pair",
    "latex_table",
    "line_chart",
    "links",
    "markdown_table",
    "number_text",
    "picture_uri",
    "preview",
    "principal_components",
    "regime_means",
    "save_figure",
    "save_png_and_svg",
    "seed_differences",
    "seed_summary",
    "share_text",
    "similarity_pair",
    "table_cells",
    "tidy_table",
    "top_correspondences",
    "umap_available",
    "varied",
    "view_crops",
    "view_names",
    "write_tables",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"glsd.reporting.{_MODULES[name]}"), name)
