"""The commands of `fed-a2v`, one file each: `run(words)` does the work, `USAGE` is its lines in the help."""

# Each is a module, imported when it is asked for: what one needs, the others do not wait for.
COMMANDS = ("train", "compare", "config", "report", "embed", "generate", "synth", "targets", "doctor", "completion")
# Those whose words are settings.
TAKE_OVERRIDES = ("train", "compare", "config", "embed", "targets", "doctor")
