"""For mkdocs: the reference of the command line, as typer writes it."""

import subprocess
import sys
from typing import Any

from mkdocs.structure.files import File, Files

PAGE = "reference/command_line.md"
COMMAND = ("-m", "typer", "fusionroute.cli", "utils", "docs", "--name", "fusionroute", "--title", "Command line")


def on_files(files: Files, config: Any) -> Files:
    text = subprocess.run([sys.executable, *COMMAND], check=True, capture_output=True, text=True).stdout
    files.append(File.generated(config, PAGE, content=text))
    return files
