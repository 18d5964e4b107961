"""`onnxspect`: the group of commands, and the one place where errors become a line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from onnxspect.cli import exit_status

#: Command -> (module, function): imported when it is used, so that --help answers at once.
COMMANDS = {
    "scan": ("cmd_scan", "Look for backdoors in a model and say how sure it is."),
    "convert": ("cmd_convert", "Turn a model of any framework into ONNX, and prove that it computes the same."),
    "info": ("cmd_info", "Show what a file is: input, logits, weights, taps."),
    "patch": ("cmd_patch", "Remove the backdoor that a scan found, and prove it on the written file."),
    "verify": ("cmd_verify", "Measure a patched file against its original in onnxruntime."),
    "diff": ("cmd_diff", "List every difference between two ONNX files."),
    "cleanse": ("cmd_cleanse", "Name the poisoned samples of a training set, and keep the rest."),
    "certify": ("cmd_certify", "Bound what poisoned training points can do behind a sanitiser."),
    "report": ("cmd_report", "Show the report of a finished scan again, in another format."),
    "demo": ("cmd_demo", "Find, show, patch and prove away a real backdoor in a shipped model."),
}

#: Those that open a stranger's ONNX file, in a child process.
_OPENING = frozenset(("scan", "info", "patch", "verify", "demo"))


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"onnxspect.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]}, epilog=exit_status.HELP)
@click.version_option(package_name="onnxspect", prog_name="onnxspect")
def cli() -> None:
    """Find, show, patch and prove away backdoors in any image classifier, starting from its ONNX file."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the exit status."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 2 and 3 with one line and a hint, never a traceback.

    ONNXSPECT_DEBUG=1 shows the traceback of an unexpected failure.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in _OPENING and not {"-h", "--help"} & set(given):
        from onnxspect.converters.sandbox.guard import start_ahead

        start_ahead("probe")  # the child loads its libraries while torch is imported here
    # Errors are imported late for the same reason as commands: torch takes seconds to import.
    try:
        result: Any = cli.main(args=arguments, prog_name="onnxspect", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return exit_status.USAGE
    except (KeyboardInterrupt, click.Abort):
        _complain(
            "interrupted", "a scan goes on where it stopped when the same command is run again; nothing else is left"
        )
        return exit_status.FAILURE
    except Exception as error:
        return _failed(error)
    return result if isinstance(result, int) else exit_status.CLEAN


def _failed(error: Exception) -> int:
    from onnxspect.converters.errors import OnnxspectError

    if isinstance(error, OnnxspectError):
        _complain(error.message, error.hint)
        return exit_status.INCONCLUSIVE if error.inconclusive else exit_status.USAGE
    if os.environ.get("ONNXSPECT_DEBUG"):
        raise error
    first = (str(error).splitlines() or [""])[0]
    _complain(f"unexpected failure: {type(error).__name__}: {first}", "ONNXSPECT_DEBUG=1 shows where; please report it")
    return exit_status.FAILURE


def _complain(message: str, hint: str = "") -> None:
    click.echo(f"onnxspect: {message}" + (f"\n  hint: {hint}" if hint else ""), err=True)
