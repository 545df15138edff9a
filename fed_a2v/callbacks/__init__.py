"""Side effects of a run, one file each; `build` makes the list that the trainer calls."""
