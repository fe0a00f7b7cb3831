"""``fusionroute lm-eval``: lm-eval's own command, with our model among its models."""

import sys

import typer

from fusionroute.errors import SettingsError

# Everything after the command's name, --help too, is lm-eval's.
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def lm_eval(context: typer.Context) -> None:
    """Benchmarks, by lm-eval's own command: --model fusionroute --model_args team=TEAM --tasks gsm8k (see --help)."""
    try:
        import fusionroute.evaluation.harness  # noqa: F401  # registers the model
    except ImportError as error:
        raise SettingsError(str(error)) from error
    from lm_eval.__main__ import cli_evaluate

    ours, sys.argv = sys.argv, ["lm-eval", *context.args]  # from where lm-eval takes its arguments
    try:
        cli_evaluate()
    finally:
        sys.argv = ours
