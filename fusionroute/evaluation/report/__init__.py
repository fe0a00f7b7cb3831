"""One self-contained HTML page about a comparison, good enough to send to a colleague."""

from fusionroute.evaluation.report.page import write_report

__all__ = ["write_report"]
