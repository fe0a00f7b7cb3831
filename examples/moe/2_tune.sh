fusionroute roma sweep roma.yaml --output runs/roma
fusionroute roma evaluate runs/roma/model test.jsonl --reference-base zoo/olmoe
