"""Metrics of a round, computed from the sites' scores: one metric per file, chosen in `conf/metrics/`."""
