"""`fed-a2v completion`: scripts for shells that complete commands, options, keys and their values."""

from __future__ import annotations

from rich.console import Console

from fed_a2v.commands import COMMANDS, TAKE_OVERRIDES
from fed_a2v.commands.parser import Parser

USAGE = """\
fed-a2v completion SHELL           print a script that completes commands and settings
  eval "$(fed-a2v completion bash)"      # in ~/.bashrc
  source <(fed-a2v completion zsh)       # in ~/.zshrc, after compinit
  fed-a2v completion fish | source       # in ~/.config/fish/config.fish
"""

# Keys are completed by Hydra, through the query of its own completion, which gives words of the form KEY=VALUE.
# bash splits words at the signs in COMP_WORDBREAKS, by default also at = and :, and replaces the last part only. The
# script leaves this variable of the shell as it is, and cuts what is already there from each choice.
BASH = """\
_fed_a2v() {
    local line=${COMP_LINE:0:COMP_POINT} word choices before command=${COMP_WORDS[1]}
    word=${line##*[[:space:]]}
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
        [ ${#COMPREPLY[@]} -eq 1 ] && COMPREPLY[0]+=" "
        return
    fi
    case " @SETTINGS@ " in
        *" $command "*)
            choices=$(COMP_LINE="fed-a2v ${line#*"$command"}" \\
                fed-a2v train --shell-completion query=bash 2>/dev/null)
            COMPREPLY=($(compgen -W "$choices" -- "$word"))
            if [[ $COMP_WORDBREAKS == *=* ]]; then
                before=${word%"${word##*[=:]}"}
                COMPREPLY=("${COMPREPLY[@]#"$before"}")
            fi
            ;;
    esac
}
complete -o nospace -o default -F _fed_a2v fed-a2v
"""
ZSH = """\
_fed_a2v() {
    local word=${words[CURRENT]} command=${words[2]}
    local -a choices
    if (( CURRENT == 2 )); then
        compadd -- @COMMANDS@
        return
    fi
    if [[ " @SETTINGS@ " == *" $command "* ]]; then
        choices=(${(f)"$(COMP_LINE="fed-a2v ${words[3,CURRENT]}" \\
            fed-a2v train --shell-completion query=bash 2>/dev/null | tr ' ' '\\n')"})
        compadd -S '' -- $choices && return
    fi
    _files
}
compdef _fed_a2v fed-a2v
"""
FISH = """\
function __fed_a2v_settings
    set -l words (commandline -opc) (commandline -ct)
    env COMP_LINE="fed-a2v $words[3..]" fed-a2v train --shell-completion query=bash 2>/dev/null | string split -n ' '
end
complete -c fed-a2v -n __fish_use_subcommand -f -a '@COMMANDS@'
complete -c fed-a2v -n '__fish_seen_subcommand_from @SETTINGS@' -a '(__fed_a2v_settings)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def run(words: list[str]) -> None:
    """Print the script for the shell."""
    parser = Parser(USAGE)
    parser.add_argument("shell", choices=SCRIPTS, metavar="SHELL", help="bash, zsh or fish")
    shell = parser.parse(words).shell

    script = SCRIPTS[shell].replace("@COMMANDS@", " ".join(COMMANDS)).replace("@SETTINGS@", " ".join(TAKE_OVERRIDES))
    Console().print(script, end="", markup=False, highlight=False, soft_wrap=True)
