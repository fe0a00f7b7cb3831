"""C3PO (arXiv 2504.07964): each question's routing moved towards that of similar ones, without training."""
