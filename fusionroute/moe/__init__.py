"""Mixture-of-experts models: how they choose their experts, and better choices (RoMA, C3PO)."""
