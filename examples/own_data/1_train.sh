fusionroute zoo take --output zoo
python make_rows.py
fusionroute train team.yaml --dry-run
fusionroute train team.yaml --output runs/team
fusionroute generate runs/team "Where is my parcel?"
