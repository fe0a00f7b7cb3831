import fusionroute as fr

team = fr.Team.from_pretrained("runs/team")
(completion,) = team.generate(["Ann has 33 stamps, gives away 3, buys 3 more. How many now?"], max_new_tokens=64)
print(completion.text)
for record in completion.trace:
    print(record.expert, record.decided_by, team.tokenizer.decode([record.token_id]))
