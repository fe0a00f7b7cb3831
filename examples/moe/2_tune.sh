fusionroute roma sweep roma.yaml runs/roma
fusionroute roma evaluate runs/roma/model test.jsonl --reference-base zoo/olmoe
