"""One file per data set: how its files become clips."""
