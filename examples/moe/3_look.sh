fusionroute roma record zoo/olmoe test.jsonl --output runs/before --prompt chat_template
fusionroute roma record runs/roma/model test.jsonl --output runs/after
fusionroute roma report runs/before runs/after --output routing.html
