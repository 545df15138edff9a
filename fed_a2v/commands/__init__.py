"""The commands of `fed-a2v`, one file each: `run(words)` does the work, `USAGE` is its lines in the help."""
