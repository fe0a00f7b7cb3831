from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
for model in ("team", "team/math", "team/no-complement"):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say mouse and singer in capitals with commas."}]
    )
    print(model, answer.choices[0].message.content)
