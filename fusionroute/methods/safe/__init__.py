"""SAFE (arXiv 2510.15346): models with different tokenizers, ensembled only where it is safe and could help."""

from fusionroute.methods.safe.method import Safe

__all__ = ["Safe"]
