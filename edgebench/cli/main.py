"""The ``edgebench`` command: its parts, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import edgebench
from edgebench.cli import (
    check,
    devices,
    directions,
    doctor,
    energy,
    evaluate,
    export,
    exporters,
    flops,
    meters,
    overhead,
    pareto,
    plot,
    resume,
    run,
    sample,
    setup,
    surrogate,
    table,
)
from edgebench.cli.output import Answer, error_document, say_error, say_json
from edgebench.errors import EdgebenchError, Interrupted, UsageError

EPILOG = (
    "Exit codes: 0 done, 1 the answer is no, 2 wrong command line, 3 bad input, 4 the device, "
    "5 this host's storage, 6 the measurement, 7 the export, 130 interrupted."
)


class Commands(TyperGroup):
    """The commands; Ctrl-C in any of them is an error of ours, with a sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted; nothing was changed") from error


app = typer.Typer(
    name="edgebench",
    cls=Commands,
    help="Latency, energy and power of trained adapters on edge hardware: numbers you can publish, "
    "and a plain word when you can't.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgebench {edgebench.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    pass


for module in (
    export,
    exporters,
    run,
    overhead,
    directions,
    flops,
    sample,
    resume,
    table,
    check,
    energy,
    plot,
    surrogate,
    devices,
    meters,
    doctor,
    setup,
    evaluate,
    pareto,
):
    module.register(app)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its documented code."""
    arguments = sys.argv[1:] if argv is None else argv
    # --debug may stand anywhere: nobody who has just seen an error wants to think about order.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="edgebench", standalone_mode=True)
    except EdgebenchError as error:
        if debug:
            traceback.print_exc()
        if "--json" in arguments:
            say_json({"error": error_document(error)})
        say_error(error)
        raise SystemExit(error.exit_code) from None
    except Answer:
        raise
    except SystemExit as done:
        # Typer has said on stderr what is wrong with the command line.
        if done.code == UsageError.exit_code and "--json" in arguments:
            said = UsageError("the command line is wrong", fix="See stderr, or --help.")
            say_json({"error": error_document(said)})
        raise


if __name__ == "__main__":
    main()
