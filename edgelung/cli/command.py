"""The form of a command: help with groups of options, and usage errors of one line."""

import math
from typing import TYPE_CHECKING, Any

from typer import BadParameter
from typer.core import TyperCommand
from typer.exceptions import TyperException

from edgelung.core.errors import one_line, visible

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter


class Command(TyperCommand):
    """A command whose help shows its options in groups, without importing rich.

    The group of an option is its `rich_help_panel`; typer itself shows groups only through rich,
    which takes longer to import than everything else that `--help` needs.
    """

    def invoke(self, ctx: "Context") -> Any:
        """Run the command; from here on, log records and progress are shown.

        Raises BadParameter for a number that is not finite: no bound of an option excludes NaN.
        """
        from edgelung.core.terminal import show_reports

        for parameter in self.get_params(ctx):
            value = ctx.params.get(str(parameter.name))
            if isinstance(value, float) and not math.isfinite(value):
                hint = f"'{parameter.opts[0]}'"
                raise BadParameter(f"{value} is not a finite number", ctx=ctx, param_hint=hint)
        show_reports()
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        """Return the words of the usage line: `FOLDER...` instead of typer's `{FOLDER}...`."""
        return [
            piece.strip("{}").replace("}...", "...") for piece in super().collect_usage_pieces(ctx)
        ]

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write the arguments, then each group of options under its own heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            name, text = record
            if parameter.param_type_name == "argument":
                heading, name = "Arguments", name.partition(" <")[0]
            else:
                heading = getattr(parameter, "rich_help_panel", None) or "Options"
            groups.setdefault(heading, []).append((name, text))
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def report(message: str, *values: object) -> None:
    """Log a line for people, filled with `values` as by `%`.

    logging is imported here, since `--help` does without it.
    """
    import logging

    logging.getLogger(__name__).info(message, *values)


def print_next(*words: object) -> None:
    """End the output for people with the command that comes next."""
    import shlex

    from edgelung.core.terminal import out

    command = shlex.join(["edgelung", *map(str, words)])
    out().print(f"next    {visible(command)}")


def usage_message(error: TyperException) -> str:
    """Return the message of a usage error: what was found, what was expected, where to read on.

    If no command was given, it is the help page.
    """
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # a module of typer's own holds the class
        return visible(text, "\n")
    context = getattr(error, "ctx", None)
    see = f"see `{context.command_path if context else 'edgelung'} --help`"
    message = one_line(text).rstrip(".")
    message = message[0].lower() + message[1:]
    if message.startswith("missing ") and (help_text := _help_of(error)):
        message += f" ({help_text.rstrip('.')})"
    elif message.startswith("no such option") and message.endswith(")"):
        message, _, similar = message.removesuffix(")").partition(" (Possible options: ")
        message += f". Did you mean {similar}?"
    elif message.startswith("no such command") and not message.endswith("?") and context:
        message += f"; expected one of {', '.join(context.command.commands)}"
    asks = message.endswith("?")
    return f"edgelung: {message}" + (f" {see.capitalize()}" if asks else f"; {see}")


def _help_of(error: TyperException) -> str:
    """The help text of the parameter that an error is about; '' if it has none."""
    return getattr(getattr(error, "param", None), "help", None) or ""
