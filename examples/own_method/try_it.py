import lm_eval
from lm_eval.tasks import TaskManager
from most_certain import MostCertain

from fusionroute import GenerationSettings
from fusionroute.engine.engine import Engine
from fusionroute.evaluation.harness import MethodLM
from fusionroute.models.loading import load_model, load_tokenizer

experts = {name: load_model(f"zoo/{name}") for name in ("math", "code", "chat")}
tokenizer = load_tokenizer("zoo/math")
method = MostCertain(experts)

engine = Engine(method, tokenizer)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Ben has 22 books, finds 6 more. How many now?"}],
    add_generation_prompt=True,
    return_dict=False,
)
(completion,) = engine.generate([prompt], GenerationSettings(max_new_tokens=40))
print(completion.text, [record.expert for record in completion.trace])

results = lm_eval.simple_evaluate(
    MethodLM(method, tokenizer),
    tasks=["zoo_sums", "zoo_words"],
    task_manager=TaskManager(include_path="zoo/tasks"),
    limit=20,
    apply_chat_template=True,
)
print(lm_eval.utils.make_table(results))
