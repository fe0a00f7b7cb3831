fusionroute calibrate safe.yaml prompts.jsonl --output calibrated.yaml
