"""Print the completion of bash or zsh: add `eval "$(niels_gpt completion bash)"` to ~/.bashrc."""

from train.cli.command import Parser
from train.commands.program import COMMANDS

# Where nothing fits, -o default gives file names. Bash replaces only what follows a = in COMP_WORDBREAKS. Names of
# files in ./conf may be from others, so no choice is expanded, as compgen -W would.
SCRIPT = r"""
_niels_gpt() {
    local line="${COMP_LINE:0:$COMP_POINT}" choices choice
    local word="${line##* }"
    case "$line" in
        "niels_gpt train "* | "niels_gpt prepare "* | "niels_gpt doctor "*)
            choices="$(COMP_LINE="niels_gpt ${line#niels_gpt * }" niels_gpt train -sc query=bash 2> /dev/null)" ;;
        "niels_gpt "*" "*) return ;;
        *)
            choices="@COMMANDS@"
            compopt +o nospace 2> /dev/null ;;
    esac
    COMPREPLY=()
    while read -r -d ' ' choice; do
        [[ -n "$choice" && "$choice" == "$word"* ]] && COMPREPLY+=("$choice")
    done <<< "$choices "
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -o nospace -o default -F _niels_gpt niels_gpt
"""
ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
autoload -Uz bashcompinit && bashcompinit
"""


def main() -> None:
    """Print the script."""
    parser = Parser(description=__doc__)
    parser.add_argument("shell", choices=["bash", "zsh"])
    shell = parser.parse_args().shell
    print((ZSH if shell == "zsh" else "") + SCRIPT.replace("@COMMANDS@", " ".join(COMMANDS)), end="")
