"""Time `orchestrate data prepare` on unique conversations of real length.

Run: python -m benchmarks.data --texts FILE --folder DIR

The texts are stitched from the answers of a ShareGPT file (--texts), the number of turns and their
lengths are those of its conversations, and the answers are HTML as the pages of ChatGPT have it.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_WORD = re.compile(r"\b(if|for|return|import|def|class|in|from|while|else)\b")


def main() -> None:
    """Write the input where it is missing, clean it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="ShareGPT .json to draw from")
    parser.add_argument("--folder", type=Path, required=True, help="where to write")
    parser.add_argument("--conversations", type=int, default=70_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--language", help="also filter by language")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    source = options.folder / f"sharegpt-{options.conversations}.json"
    if not source.exists():
        _write(source, options.texts, options.conversations)
    result = _measure(source, options)
    if options.as_json:
        print(json.dumps(result, indent=1))
        return
    print("\n".join(f"{name:<28} {value}" for name, value in result.items()))


def _measure(source: Path, options: argparse.Namespace) -> dict[str, object]:
    output = options.folder / "clean.jsonl"
    command = [sys.executable, "-m", "train.data.clean", source, output, "--force"]
    command += ["--workers", str(options.workers)]
    if options.language:
        command += ["--language", options.language]
    # A phrase that no text holds: other options every time, so that it is done anew.
    command += ["--block-phrase", "openai", "--block-phrase", f"no such phrase {time.time_ns()}"]
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    return {
        "schema_version": 1,
        "conversations": report["num_read"],
        "written": report["num_written"],
        "input_mb": round(source.stat().st_size / 1e6, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "conversations_per_s": round(report["num_read"] / seconds, 1),
        "peak_rss_mb_of_one_process": round(usage.ru_maxrss / 1024, 1),
        "workers": options.workers,
        "load_average": round(os.getloadavg()[0], 1),
    }


def _write(path: Path, texts: Path, count: int) -> None:
    source = json.loads(texts.read_text(encoding="utf-8"))
    shapes = [item["conversations"] for item in source]
    paragraphs = {
        speaker: [
            part
            for turns in shapes
            for turn in turns
            if turn["from"] == speaker
            for part in re.split(r"\n\n(?![^`]*```\n)", turn["value"])
        ]
        for speaker in ("human", "gpt")
    }
    generator = random.Random(7)
    scratch = path.with_suffix(".new")
    with scratch.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, turns in enumerate(_conversations(shapes, paragraphs, generator, count)):
            item = {"id": f"c{number}", "conversations": turns}
            file.write((",\n" if number else "\n") + json.dumps(item, ensure_ascii=False))
        file.write("\n]\n")
    scratch.replace(path)


def _conversations(
    shapes: list[list[dict[str, str]]],
    paragraphs: dict[str, list[str]],
    generator: random.Random,
    count: int,
) -> Iterator[list[dict[str, str]]]:
    for number in range(count):
        turns = []
        for index, turn in enumerate(generator.choice(shapes)):
            text = f"Question {number}. " if index == 0 else ""
            while len(text) < len(turn["value"]):
                text += generator.choice(paragraphs[turn["from"]]) + "\n\n"
            text = text.rstrip()
            value = _page(text) if turn["from"] == "gpt" else text
            turns.append({"from": turn["from"], "value": value})
        yield turns


def _page(text: str) -> str:
    """Return Markdown as ChatGPT's page shows it; of its grammar only what is frequent."""
    parts, at = [], 0
    for found in _FENCE.finditer(text):
        parts += [_prose(text[at : found.start()]), _code(found[1] or "python", found[2])]
        at = found.end()
    body = "".join([*parts, _prose(text[at:])])
    return f'<div class="markdown prose w-full break-words dark:prose-invert light">{body}</div>'


def _prose(text: str) -> str:
    out = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line.strip()]
        if lines and all(re.match(r"\s*(\d+\.|[*-])\s", line) for line in lines):
            items = (re.sub(r"^\s*(\d+\.|[*-])\s+", "", line) for line in lines)
            out.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        elif lines:
            out.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "".join(out)


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _code(language: str, code: str) -> str:
    colours = _WORD.sub(r'<span class="hljs-keyword">\1</span>', html.escape(code, quote=False))
    return (
        '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center text-gray-200">'
        f'<span class="">{language}</span><button class="flex ml-auto gap-2">Copy code</button>'
        f'</div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs language-'
        f'{language}">{colours}</code></div></div></pre>'
    )


if __name__ == "__main__":
    main()
