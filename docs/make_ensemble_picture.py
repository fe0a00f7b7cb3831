"""The picture of docs/ensembles.md: a long answer by three models with different tokenizers, as the terminal shows it.

python docs/make_ensemble_picture.py docs/images/ensemble.svg
"""

import sys

from make_picture import save
from rich.console import Console
from rich.text import Text

from fusionroute.cli.writing import Meter, print_legend, write_answer
from fusionroute.config import GenerationSettings
from fusionroute.ensemble import Ensemble
from fusionroute.models.loading import load_model, load_tokenizer
from fusionroute.models.member import Member
from fusionroute.zoo.build import weights_folder
from fusionroute.zoo.tasks import examples

WIDTH = 132
MODELS = ("piece_bpe", "byte_bpe", "unigram")
QUESTION = 11  # of the test split


def main(picture: str) -> None:
    folders = {name: weights_folder(name) for name in MODELS}
    members = [
        Member.of(name, load_model(folder, device="cpu"), load_tokenizer(folder), "chat_template")
        for name, folder in folders.items()
    ]
    ensemble = Ensemble(members, drafter=MODELS[0])
    engine = ensemble.engine()
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=sys.stderr)
    prompt = examples("ledger", "test", QUESTION + 1)[QUESTION].prompt
    console.print(Text(prompt, "dim"))
    meter = Meter(engine)
    answer = write_answer(console, ensemble, engine, prompt, GenerationSettings(max_new_tokens=320))
    console.print()
    print_legend(console, ensemble, [answer], meter)
    save(console, "fusionroute generate safe.yaml", picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
