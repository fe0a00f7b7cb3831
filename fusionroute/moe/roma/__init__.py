"""RoMA (arXiv 2511.07419): nothing but routers is tuned, towards the routing of similar questions."""
