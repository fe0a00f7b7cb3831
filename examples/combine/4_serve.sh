fusionroute serve runs/team --port 8000
