"""What runs a forward pass: loading, the router, the team and its one prompt format."""
