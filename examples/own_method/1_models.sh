fusionroute zoo take --output zoo
