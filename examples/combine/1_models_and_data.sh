fusionroute zoo take --output zoo
tasks="sums functions words sum_and_words sum_in_code all_three translation"
fusionroute zoo examples $tasks --split train --count 400 > train.jsonl
fusionroute zoo examples $tasks --split preference --count 300 > more.jsonl
