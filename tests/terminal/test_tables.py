"""Tables, as they are printed."""

from fusionroute.evaluation.statistics import Estimate
from fusionroute.terminal.tables import comparison_table, ensembling_table
from tiny_console import console, shown


def test_methods_that_check_tokens_have_a_table_of_their_own() -> None:
    reads = {"tokens_read_per_token": {"math": 1.1, "code": 1.456}}
    costs = {"alone": reads, "SAFE": reads | {"ensembled_per_token": 0.0357, "acceptance": 0.925}}
    costs["GaC"] = reads | {"ensembled_per_token": 1.0}
    where = console(terminal=False)
    where.print(ensembling_table(costs))
    rows = [" ".join(line.split()) for line in shown(where).splitlines()]
    assert "SAFE 3.6 92.5 math 1.10, code 1.46" in rows
    assert "GaC 100.0 – math 1.10, code 1.46" in rows
    assert "alone" not in shown(where)
    assert ensembling_table({"alone": reads}) is None


def test_the_table_highlights_the_best_of_each_column() -> None:
    rows = {
        "one": {"sums": Estimate(0.5, 0.4, 0.6, 10, 0.05), "average": Estimate(0.25, 0.2, 0.3, 20, 0.03)},
        "two": {"sums": Estimate(0.4, 0.3, 0.5, 10, 0.05), "average": Estimate(1.0, 0.9, 1.0, 20, 0.03)},
    }
    where = console(terminal=True)
    where.print(comparison_table(rows, title="right", caption="n = 10"))
    best = "\x1b[1;38;2;0;158;115m"
    assert f"{best}50" in shown(where)
    assert f"{best}100" in shown(where)
    assert f"{best}40" not in shown(where)
    plain = console(terminal=False)
    plain.print(comparison_table(rows))
    assert "40–60" in shown(plain)
    assert "\x1b" not in shown(plain)
