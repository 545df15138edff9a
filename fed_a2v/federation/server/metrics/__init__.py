"""What a round's row says of the sites' scores: one metric a file, chosen in `conf/metrics/`."""
