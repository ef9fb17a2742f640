"""Ask a service without a pause for some seconds, with the official client, and say what came.

python serving_load.py BASE_URL MODEL SECONDS NUM_CLIENTS: prints one JSON list of
[started at, answered after, how it ended] with seconds of time.time().
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import openai


def main() -> None:
    url, model, seconds, num_clients = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
    ends_at = time.time() + seconds
    asked: list[tuple[float, float, str]] = []
    # Without retries of its own: what the service does not answer is seen.
    client = openai.OpenAI(
        base_url=url,
        api_key=os.environ["ORCHESTRATE_SERVE_API_KEY"],
        max_retries=0,
        timeout=60,
    )

    def ask(*, is_streamed: bool) -> None:
        while time.time() < ends_at:
            started = time.time()
            try:
                how = _ask(client, model, is_streamed=is_streamed)
            except openai.OpenAIError as error:
                how = f"{type(error).__name__}: {error}"[:200]
            asked.append((started, time.time() - started, how))

    threads = [
        threading.Thread(target=ask, kwargs={"is_streamed": bool(number % 2)})
        for number in range(int(num_clients))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(asked, sys.stdout)


def _ask(client: openai.OpenAI, model: str, *, is_streamed: bool) -> str:
    messages = [{"role": "user", "content": "Count."}]
    if not is_streamed:
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=64)
        return "answered" if answer.choices[0].finish_reason == "length" else "cut"
    finish = None
    chunks = client.chat.completions.create(
        model=model, messages=messages, max_tokens=64, stream=True
    )
    for chunk in chunks:
        finish = chunk.choices[0].finish_reason or finish if chunk.choices else finish
    return "streamed" if finish == "length" else "cut"


if __name__ == "__main__":
    main()
