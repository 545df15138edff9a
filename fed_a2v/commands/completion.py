"""`fed-a2v completion`: shell script that completes commands, keys and options."""

from __future__ import annotations

import argparse

from rich.console import Console

from fed_a2v.commands import COMMANDS

USAGE = """\
fed-a2v completion bash            completion of commands, keys and options: eval "$(fed-a2v completion bash)"
"""

# Keys are completed by Hydra, through the query of its own completion.
BASH = """\
_fed_a2v() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} choices
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        [ ${{#COMPREPLY[@]}} -eq 1 ] && COMPREPLY[0]+=" "
        return
    fi
    case $command in
        train|compare|config)
            choices=$(COMP_LINE="fed-a2v ${{COMP_LINE#*"$command"}}" \\
                fed-a2v train --shell-completion query=bash 2>/dev/null)
            COMPREPLY=($(compgen -o default -W "$choices" -- "$word"))
            ;;
    esac
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _fed_a2v fed-a2v
"""


def run(words: list[str]) -> None:
    """Print the script for the shell."""
    parser = argparse.ArgumentParser("fed-a2v completion", description="Print the completion script of a shell.")
    parser.add_argument("shell", choices=["bash"])
    parser.parse_args(words)

    script = BASH.format(commands=" ".join(COMMANDS))
    Console().print(script, end="", markup=False, highlight=False, soft_wrap=True)
