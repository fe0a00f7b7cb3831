fusionroute roma record zoo/olmoe test.jsonl runs/before --prompt chat_template
fusionroute roma record runs/roma/model test.jsonl runs/after
fusionroute roma report runs/before runs/after routing.html
