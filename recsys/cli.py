"""The command line `recsys`: parse, call one function, print.

--json and --debug are understood anywhere on the line. A failure is one line on stderr: exit code 2 where the caller
can mend it, 1 where we must, 130 after Ctrl-C. Nothing heavy is imported before a command runs.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from recsys import __version__
from recsys.commands import compare, config, data, demo, doctor, evaluate, floors, recommend, runs, serve, train
from recsys.commands.data import ingest, prepare
from recsys.commands.output import Output
from recsys.errors import InputError, RecsysError

app = typer.Typer(
    name="recsys",
    help="Sequential recommendation: behaviour logs in, ranked items out.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("floors")(floors.floors)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("recommend")(recommend.recommend)
app.command("ingest")(ingest.ingest)
app.command("serve")(serve.serve)
app.add_typer(runs.app, name="runs")
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else; anywhere.")] = False,  # noqa: ARG001  # taken out by main
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of a failure; anywhere.")] = False,  # noqa: ARG001  # taken out by main
) -> None:
    """Sequential recommendation: behaviour logs in, ranked items out."""
    if version:
        output: Output = context.obj
        output.result({"version": __version__}, f"recsys {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_json, is_debug = _take(words, "--json"), _take(words, "--debug")
    output = Output(is_json)
    try:
        code = typer.main.get_command(app).main(args=words, prog_name="recsys", standalone_mode=False, obj=output)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`recsys runs list | head`): nothing is left to say, and Python's own flush must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if is_debug and not _is_of_the_parser(error):
            raise
        return _failed(error, output)
    if code == 130:
        output.interrupted()
    return code if isinstance(code, int) else 0


def _take(words: list[str], flag: str) -> bool:
    end = words.index("--") if "--" in words else len(words)
    is_there = flag in words[:end]
    words[:] = [word for place, word in enumerate(words) if word != flag or place > end]
    return is_there


def _failed(error: Exception, output: Output) -> int:
    if _is_of_the_parser(error):
        where = getattr(getattr(error, "ctx", None), "command_path", "recsys")
        message = _one_line(error.format_message()).rstrip(".")  # type: ignore[attr-defined]  # click's own
        # A group without a command has printed its help, and its message is empty.
        output.fail(f"{message or 'no command is named'}; see {where} --help", 2)
        return 2
    if isinstance(error, InputError):
        output.fail(_one_line(str(error)), 2)
        return 2
    if isinstance(error, RecsysError | OSError):
        output.fail(_one_line(str(error)), 1)
    else:
        output.fail(f"{type(error).__name__}: {_one_line(str(error))}; this is a bug: --debug shows where", 1)
    return 1


def _is_of_the_parser(error: Exception) -> bool:
    """Usage errors of typer, which brings a click of its own."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _one_line(text: str) -> str:
    return " ".join(text.split())
