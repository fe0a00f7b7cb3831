"""How a command fails: one line on stderr and an exit code; a traceback is left to our own mistakes."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from fusionroute.errors import FusionRouteError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
RESUMABLE = ("train", "score", "sft", "cdpo", "pairs", "demo", "zoo", "evaluate", "judge", "roma")


class OneLineErrors(TyperGroup):
    """What the user can mend is one line on stderr and exit code 2; a traceback is left to our own mistakes."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            hint = f"; see {context.command_path} --help" if context else ""
            code = complain(f"{error.format_message().rstrip('.')}{hint}", BAD_INPUT)
        except typer.Abort:
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FusionRouteError as error:
            raise typer.Exit(complain(str(error), BAD_INPUT)) from None
        except KeyboardInterrupt:
            go_on = "; run the same command again to continue" if ctx.invoked_subcommand in RESUMABLE else ""
            raise typer.Exit(complain(f"interrupted{go_on}", INTERRUPTED)) from None


def complain(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
