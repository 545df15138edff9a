"""The figures of a report, each with a table of its numbers; `page` puts them together. A file for each subject."""

from fed_a2v.report.figures.base import MOST_VIEWS, Layout, Plot
from fed_a2v.report.figures.classes import class_plot, confusion_plot, most_confused, worst_first
from fed_a2v.report.figures.embedding_map import map_plot
from fed_a2v.report.figures.gates import gates_table
from fed_a2v.report.figures.rounds import (
    accuracy_plot,
    bytes_plot,
    gain_plot,
    loss_plot,
    network_plot,
    seconds_plot,
    validation_plot,
)
from fed_a2v.report.figures.sites import sites_plot

__all__ = [
    "MOST_VIEWS",
    "Layout",
    "Plot",
    "accuracy_plot",
    "bytes_plot",
    "class_plot",
    "confusion_plot",
    "gain_plot",
    "gates_table",
    "loss_plot",
    "map_plot",
    "most_confused",
    "network_plot",
    "seconds_plot",
    "sites_plot",
    "validation_plot",
    "worst_first",
]
