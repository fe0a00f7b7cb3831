fusionroute evaluate compare.yaml --output runs/comparison
