import csv
import json
from pathlib import Path

with Path("tickets.csv").open(newline="", encoding="utf-8") as file:
    rows = [{"prompt": row["question"], "completion": row["reply"]} for row in csv.DictReader(file)]
Path("examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
