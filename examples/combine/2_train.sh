fusionroute train team.yaml --dry-run
fusionroute train team.yaml --output runs/team
