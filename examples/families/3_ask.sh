head -n 2 prompts.jsonl > two.jsonl
fusionroute generate calibrated.yaml --file two.jsonl --max-new-tokens 160
