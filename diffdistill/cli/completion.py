"""Writes the scripts by which a shell completes diffdistill's command line.

A script is printed from the table of commands. It holds every command, flag,
choice and recipe, so that a shell answers at once, without starting Python.
Libraries for this work need a parser of argparse, and their scripts for bash
complete neither --flag=VALUE nor a name with a colon, such as digits:all.
"""

import shlex
from collections.abc import Iterable, Sequence

from diffdistill.cli.command import Command, Flag
from diffdistill.cli.commands import COMMANDS
from diffdistill.run import recipes

SHELLS = ("bash", "fish", "zsh")
HELP = "--help"
# These kinds of flags have the path of a file or a folder as their value.
PATHS = ("config", "config words", "place", "places")

# bash splits a word at = and : if COMP_WORDBREAKS has these letters, and
# replaces only the part after the last of them. zsh does not split a word. So a
# reply leaves out what comes before that part.
BASH = """\
# Completes diffdistill in {shell}. Add this line to ~/.{shell}rc:
#   source <(diffdistill completion --shell={shell})
{begin}_diffdistill() {{
  local line="${{COMP_LINE:0:$COMP_POINT}}" offers="" paths="" word
  local current="${{line##*[[:space:]]}}"
  local typed="$current" newline=$'\\n'
  [[ "$COMP_WORDBREAKS" == *"="* ]] && typed="${{typed##*=}}"
  [[ "$COMP_WORDBREAKS" == *":"* ]] && typed="${{typed##*:}}"
  local before="${{current%"$typed"}}"
  if ((COMP_CWORD == 1)); then
    offers={commands}
  else
    case "${{COMP_WORDS[1]}} $current" in
{cases}
    esac
  fi
  COMPREPLY=()
  while IFS= read -r word; do
    [[ -n "$word" && "$word" == "$current"* ]] || continue
    [[ "$word" == *= ]] || word="$word "
    COMPREPLY+=("${{word#"$before"}}")
  done <<< "${{offers// /$newline}}"
  [[ -n "$paths" ]] || return 0
  for word in "${{current#*=}}"*; do
    [[ -e "$word" ]] || continue
    local end=" "
    [[ -d "$word" ]] && end="/"
    printf -v word "%q" "$word"
    word="${{current%%=*}}=$word$end"
    COMPREPLY+=("${{word#"$before"}}")
  done
}}
complete -o nospace -F _diffdistill diffdistill"""
BEGIN_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
FISH = """\
# Completes diffdistill in fish. Add this line to ~/.config/fish/config.fish:
#   diffdistill completion --shell=fish | source
complete -c diffdistill -f"""


def completion(shell: str) -> None:
  """Prints the script that completes diffdistill's command line in a shell.

  Args:
    shell: the name of the shell, one of SHELLS.
  """
  print(script(shell, tuple(recipes.descriptions())))


def script(shell: str, names: Sequence[str]) -> str:
  """The script for a shell.

  Args:
    shell: the name of the shell, one of SHELLS.
    names: the names of the recipes.
  """
  if shell == "fish":
    return "\n".join((FISH, *_fish_lines(names)))
  cases = [
    line for name in COMMANDS for line in _cases(name, COMMANDS[name], names)
  ]
  cases.append(f'"help "*) offers={_quoted(COMMANDS)} ;;')
  return BASH.format(
    shell=shell,
    begin=BEGIN_ZSH if shell == "zsh" else "",
    commands=_quoted((*COMMANDS, "help")),
    cases="\n".join(f"      {case}" for case in cases),
  )


def _cases(name: str, command: Command, names: Sequence[str]) -> Iterable[str]:
  """The lines of a shell's `case` for one command: values, then the flags."""
  for flag in command.flags:
    values = _values(flag, names)
    setting = f" offers={_quoted(f'--{flag.name}={v}' for v in values)}"
    paths = " paths=yes" if flag.kind in PATHS else ""
    if values or paths:
      yield f'"{name} --{flag.name}="*){setting if values else ""}{paths} ;;'
  flags = (
    f"--{flag.name}{'' if flag.kind == 'switch' else '='}"
    for flag in command.flags
  )
  yield f'"{name} "*) offers={_quoted((*flags, HELP))} ;;'


def _fish_lines(names: Sequence[str]) -> Iterable[str]:
  """The `complete` lines of fish, which reads --flag=VALUE by itself."""
  begin = "complete -c diffdistill -n"
  for name, command in COMMANDS.items():
    summary = shlex.quote(command.summary)
    yield f"{begin} __fish_use_subcommand -a {name} -d {summary}"
    seen = f"{begin} '__fish_seen_subcommand_from {name}'"
    yield f"{seen} -l help -d 'Explain the command.'"
    for flag in command.flags:
      values = _values(flag, names)
      options = [f"-l {flag.name}"]
      if flag.kind != "switch":
        options.append("-r -F" if flag.kind in PATHS else "-x")
      if values:
        options.append(f"-a {_quoted(values)}")
      first = flag.help.split(". ")[0].rstrip(".")
      yield " ".join((seen, *options, "-d", shlex.quote(first)))


def _values(flag: Flag, names: Sequence[str]) -> Sequence[str]:
  """The words that a flag may have as its value, as far as they are known."""
  return names if flag.kind in ("config", "config words") else flag.choices


def _quoted(words: Iterable[str]) -> str:
  """Several words as one word of a shell, with spaces between them."""
  return shlex.quote(" ".join(words))
