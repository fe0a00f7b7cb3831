fusionroute zoo take --output zoo
mkdir -p tasks && cp my_task.yaml tasks
fusionroute evaluate compare.yaml --output runs/mine
