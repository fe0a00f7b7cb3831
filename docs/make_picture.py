"""The README's picture: answers of the demo's team to test questions, as the terminal shows them.

fusionroute demo && python docs/make_picture.py runs/demo docs/images/demo.svg
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fusionroute import Team
from fusionroute.terminal.tokens import coloured_answer, expert_styles, legend
from fusionroute.zoo.contest import unseen
from fusionroute.zoo.tasks import check

SHOWN = {"all_three": 2, "sum_in_code": 1, "words": 1, "translation": 1}
WIDTH = 92


def main(folder: str, picture: str) -> None:
    team = Team.from_pretrained(folder)
    drawn = unseen(max(SHOWN.values()))
    asked = [example for task, count in SHOWN.items() for example in drawn[task][:count]]
    answers = team.generate([example.prompt for example in asked], max_new_tokens=80)
    styles = expert_styles(team.expert_names)
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=sys.stderr)
    for example, answer, right in zip(asked, answers, check(asked, [a.text for a in answers]), strict=True):
        console.print(Text(f"{'✓' if right else '✗'} {example.prompt}", "dim"))
        console.print(coloured_answer(answer, team.tokenizer, styles))
        console.print()
    console.print(legend(styles, [record for answer in answers for record in answer.trace]))
    save(console, "fusionroute generate runs/demo", picture)


def save(console: Console, title: str, picture: str) -> None:
    """What was printed as an SVG file."""
    svg = console.export_svg(title=title)
    # rich embeds web fonts; a picture in a repository should not load anything
    Path(picture).write_text(re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
