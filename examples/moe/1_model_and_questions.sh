fusionroute zoo take --output zoo
fusionroute zoo examples moe_kind moe_opposite --split train --count 300 > train.jsonl
fusionroute zoo examples moe_kind moe_opposite --split dev --count 60 > dev.jsonl
fusionroute zoo examples moe_kind moe_analogy --split test --count 100 > test.jsonl
