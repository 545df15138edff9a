"""The commands of `fed-a2v`, one module each: `run(words)` runs it, `USAGE` is its part of the help."""

# Imported on use, so that a command does not wait for the imports of another.
COMMANDS = (
    "train",
    "compare",
    "config",
    "report",
    "embed",
    "generate",
    "export",
    "demo",
    "synth",
    "targets",
    "doctor",
    "completion",
)
# Commands that take settings.
TAKE_OVERRIDES = ("train", "compare", "config", "embed", "targets", "doctor")
