"""Peak memory and time of the loss: in chunks of trained predictions, and on all logits at once.

Run: python -m benchmarks.loss [--tokens 4096] [--vocabulary 32000] [--width 512]
     [--trained 0.7] [--json]

Each variant is a process of its own: forward and backward of the head and the loss alone, fp32, on
the processor. Memory is the peak of the process less what it held before.
  chunked   train.loss.summed_cross_entropy on the predictions that are trained
  full      F.cross_entropy on the logits of all tokens, others ignored: what transformers does
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from benchmarks.machine import describe_machine

_VARIANTS = ("chunked", "full")
_REPEATS = 5


def main() -> None:
    """Measure both variants and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--trained", type=float, default=0.7, help="share of predictions")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variant", choices=_VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant is not None:
        print(json.dumps(_measure(options)))
        return
    rows = []
    for variant in _VARIANTS:
        command = [sys.executable, "-m", "benchmarks.loss", *sys.argv[1:], "--variant", variant]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"variant": variant, **json.loads(done.stdout)})
    ratio = rows[0]["peak_mb"] / rows[1]["peak_mb"]
    if options.json:
        document = {"schema_version": 1, "machine": describe_machine(), "rows": rows}
        print(json.dumps({**document, "memory_ratio": ratio}))
        return
    for row in rows:
        print(f"{row['variant']:<8} {row['peak_mb']:>8.0f} MB {row['cpu_s']:>7.2f} s of processor")
    print(f"chunked needs {ratio:.2f} of the memory of full")


def _measure(options: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    from train.loss import summed_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.width, requires_grad=True)
    weight = torch.randn(options.vocabulary, options.width, requires_grad=True)
    labels = torch.randint(0, options.vocabulary, (options.tokens,))
    trained = torch.rand(options.tokens) < options.trained
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(_REPEATS):
        hidden.grad = weight.grad = None
        begin_s = time.process_time()
        if options.variant == "chunked":
            loss = summed_cross_entropy(hidden[trained], weight, None, labels[trained])
        else:
            ignored = labels.masked_fill(~trained, -100)
            loss = F.cross_entropy(F.linear(hidden, weight), ignored, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - begin_s)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_mb": (peak_kib - before_kib) * 1024 / 1e6,
        "cpu_s": sorted(seconds)[_REPEATS // 2],
    }


if __name__ == "__main__":
    main()
