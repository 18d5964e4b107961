"""`onnxspect`: the group of commands, and the one place where errors become a line and an exit status."""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from onnxspect.cli import budget, command_table, exit_status
from onnxspect.cli.former_spellings import understood
from onnxspect.converters.errors import unwritable

if TYPE_CHECKING:
    from onnxspect.cli.worker_process import Start
    from onnxspect.converters.sandbox.lock import Level

#: Command -> (module, function): imported when it is used, so that --help answers at once.
COMMANDS = {
    "scan": ("cmd_scan", "Look for backdoors in a model and say how sure it is."),
    "convert": ("cmd_convert", "Turn a model of any framework into ONNX, and prove that it computes the same."),
    "info": ("cmd_info", "Show what a file is: input, logits, weights, taps."),
    "data": ("cmd_data", "Show what was understood of a data set: classes, sizes, and what was guessed."),
    "patch": ("cmd_patch", "Remove the backdoor that a scan found, and prove it on the written file."),
    "verify": ("cmd_verify", "Measure a patched file against its original in onnxruntime."),
    "diff": ("cmd_diff", "List every difference between two ONNX files."),
    "cleanse": ("cmd_cleanse", "Name the poisoned samples of a training set, and keep the rest."),
    "certify": ("cmd_certify", "Bound what poisoned training points can do behind a sanitiser."),
    "references": ("cmd_references", "Make what many scans of the same data are compared with, once."),
    "report": ("cmd_report", "Show the report of a finished scan again, in another format."),
    "view": ("cmd_view", "Show the pages of a folder of runs in a browser, and compare two."),
    "demo": ("cmd_demo", "Find, show, patch and prove away a real backdoor in a shipped model."),
}

#: Those that open an untrusted ONNX file, in a child process.
_OPENING = frozenset(("scan", "info", "patch", "verify", "demo"))


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"onnxspect.cli.{COMMANDS[cmd_name][0]}").command
        known = {p.name for p in command.params}
        command.params += [option for option in budget.options() if option.name not in known]
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands without importing them: a shell asks at every key."""
        found = [CompletionItem(n, help=text) for n, (_, text) in COMMANDS.items() if n.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": list(command_table.HELP_NAMES)}, epilog=exit_status.HELP)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda c, _, v: _show_version(c, v),
    help="Show the version and exit.",
)
def cli() -> None:
    """Find, show, patch and prove away backdoors in any image classifier, starting from its ONNX file."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the exit status.

    What opens files is done by a worker that locks itself in (supervisor.py); help and usage errors are this process's.
    """
    escape_what_lacks()
    given = understood(sys.argv[1:] if arguments is None else arguments)
    status = supervised(given) if _opens_files(given) else run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:  # a report that did not arrive; without this Python ends with a status of its own, 120
        if status != exit_status.FAILURE:
            status = _failed(unwritable(Path("standard output"), error), given)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def escape_what_lacks() -> None:
    """Escape letters that this process's output does not have: they must not cost a report. Every process that prints calls it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _opens_files(given: list[str]) -> bool:
    """Whether it is a command to be run, and by a worker: Windows has no processes that this one could lock in."""
    return (
        bool(given)
        and given[0] in COMMANDS
        and not _asks_for_help(given)
        and sys.platform != "win32"
        and not _of_many(given)
    )


def _asks_for_help(given: list[str]) -> bool:
    return any(word in command_table.HELP_NAMES for word in given)


def _helped(given: list[str]) -> bool:
    """Show a command's help where it is asked for, without the command, whose imports take seconds; whether that was it."""
    if not given or given[0] not in COMMANDS or not _asks_for_help(given):
        return False
    try:
        command_table.parsed(given[0], given[1:])
    except click.exceptions.Exit:
        return True
    except click.ClickException:
        return False  # the command itself says what is wrong
    return False


def _of_many(given: list[str]) -> bool:
    """Whether it is a scan of many models: each is a command of its own (many.py)."""
    if given[:1] != ["scan"] or _asks_for_help(given):
        return False
    from onnxspect.engine.fleet.models import is_many

    try:
        values = command_table.parsed("scan", given[1:])
    except click.ClickException:
        return False  # the command itself says what is wrong
    return is_many(values["model"]) or any(values[name] for name in ("jobs", "ray", "cache", "no_cache"))


def supervised(given: list[str], how: Start | None = None) -> int:
    """Run a command in a worker; the exit status. `how` it is started: by default as a Python of its own."""
    from onnxspect.cli.supervisor import supervise
    from onnxspect.cli.worker_process import anew

    try:
        return supervise(given, how or anew)
    except Exception as error:
        return _failed(error, given)


def start_ahead(given: list[str]) -> None:
    """Let the child that opens a model load its libraries while this process imports torch."""
    if given and given[0] in _OPENING and not _asks_for_help(given):
        from onnxspect.converters.sandbox import guard

        guard.start_ahead("probe")


def load(name: str) -> None:
    """Import a command and all that it needs."""
    cli.get_command(click.Context(cli), name)


def run(arguments: list[str] | None = None, level: Level | None = None, memory_bytes: int | None = None) -> int:
    """Run the command line in this process and return the exit status: an error is one line and a hint, never a traceback.

    ONNXSPECT_DEBUG=1 shows the traceback of what no code expected, and of a fault of ours.

    Args:
        arguments: by default those of the process.
        level: of a worker, how far it is locked in; None where there is no worker, as in a test.
        memory_bytes: of a worker, what it may take.

    Raises:
        KeyboardInterrupt: in a worker; there its supervisor says what happened.
    """
    given = understood(sys.argv[1:] if arguments is None else arguments)
    if _helped(given):
        return exit_status.CLEAN
    many = _of_many(given)
    if not many:
        start_ahead(given)
    # Errors are imported late for the same reason as commands: torch takes seconds to import.
    try:
        if level is not None:
            _check(level, given)
        if many:
            return _scan_many(given)
        result: Any = cli.main(args=given, prog_name="onnxspect", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return exit_status.USAGE
    except (KeyboardInterrupt, click.Abort):
        if level is not None:
            raise KeyboardInterrupt from None
        again = "a scan goes on where it stopped" if given[:1] == ["scan"] else "it begins anew"
        _complain("interrupted", f"{again} when the same command is run again; nothing else is left")
        return exit_status.FAILURE
    except Exception as error:
        return _failed(error, given, memory_bytes)
    return result if isinstance(result, int) else exit_status.CLEAN


def _scan_many(given: list[str]) -> int:
    from onnxspect.cli import many

    try:
        return many.scan(given[1:])
    except many.InterruptedScansError:
        _complain("interrupted", "what is finished is kept; the same command goes on where it stopped")
        return exit_status.FAILURE


def _check(level: Level, given: list[str]) -> None:
    """Refuse what is required and missing; say what is missing."""
    if "--require-sandbox" in given:
        level.require()
    if level.missing and not {"-q", "--quiet"} & set(given):
        click.echo(f"not locked in completely: this system lacks {', '.join(level.missing)}", err=True)


def _failed(error: Exception, arguments: list[str], memory_bytes: int | None = None) -> int:
    """Say what stopped the work; the exit status of its kind."""
    from onnxspect.engine.errors import HostileError, Kind, OnnxspectError, classified

    fault = classified(error)
    if os.environ.get("ONNXSPECT_DEBUG") and (fault.kind is Kind.INTERNAL or not isinstance(error, OnnxspectError)):
        raise error
    if fault.kind is Kind.INTERNAL:
        _complain(fault.message, fault.hint or "this is a fault of onnxspect, not of your input; please report it")
        click.echo(_what_to_send(arguments), err=True)
    elif memory_bytes is not None and _of_memory(error):
        from onnxspect.cli.supervisor import out_of_memory
        from onnxspect.converters import stages

        _complain(*out_of_memory(memory_bytes, f"in {stages.current()}"))
    else:
        _complain(fault.message, fault.hint)
    if isinstance(fault, HostileError):
        from onnxspect.cli.hostile_output import put

        put(fault, arguments)
    return exit_status.OF_KIND[fault.kind]


def _of_memory(error: BaseException | None) -> bool:
    """Whether this machine's memory, not a GPU's, was what stopped the work."""
    from onnxspect.converters.errors import is_device, is_memory

    while error is not None:
        if is_memory(error):
            return not is_device(error) and "CUDA" not in str(error)
        error = error.__cause__
    return False


def _what_to_send(arguments: list[str]) -> str:
    """What a report of a fault needs, a line each."""
    import platform
    import shlex

    from onnxspect.converters.text import visible

    lines = [
        "please send these lines, the model if you may, and what the same command prints with ONNXSPECT_DEBUG=1:",
        f"  onnxspect {_version('onnxspect')}, Python {platform.python_version()}, {platform.platform()}",
        "  " + ", ".join(f"{name} {_version(name)}" for name in ("torch", "onnx", "onnxruntime", "numpy")),
        f"  command: {shlex.join(['onnxspect', *arguments])}",
    ]
    return "\n".join(map(visible, lines))


def _show_version(context: click.Context, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"onnxspect, version {_version('onnxspect')}")
        context.exit()


def _version(package: str) -> str:
    from importlib import metadata  # it takes as long to load as all the rest of the help

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _complain(message: str, hint: str = "") -> None:
    from onnxspect.converters.text import visible

    click.echo(f"onnxspect: {visible(message)}" + (f"\n  hint: {visible(hint)}" if hint else ""), err=True)
