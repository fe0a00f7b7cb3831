fusionroute zoo take zoo
