fusionroute zoo take --output zoo
fusionroute zoo examples short_ledger --split train --count 30 > prompts.jsonl
