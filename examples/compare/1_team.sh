fusionroute demo
fusionroute zoo take zoo
