fusionroute demo
fusionroute zoo take --output zoo
