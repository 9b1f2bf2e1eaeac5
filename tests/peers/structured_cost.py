"""What holding outputs to a form costs: the throughput of a batch with forms as a share of the same batch's without.

    python tests/peers/structured_cost.py [--model M] [--batch 32] [--tokens 128] [--temperature 0] [--rounds 5]

Every round runs the free batch and each form's in turn; shares are those of the medians. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from octavo import LLM, SamplingParams, StructuredOutputs

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "free": {},
    "JSON schema (a list of objects)": {"json": {"type": "array", "items": PERSON, "minItems": 50, "maxItems": 60}},
    "regex ([a-z]{1,8} ){400}": {"regex": "([a-z]{1,8} ){400}"},
    "regex (?s:.){2000}": {"regex": "(?s:.){2000}"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Octavo's default where left out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    options: dict[str, Any] = {"max_model_len": 1024, "kv_cache_memory_bytes": 512 * 2**20}
    llm = LLM(flags.model, **options) if flags.model else LLM(**options)
    prompts = [f"List {i} people." for i in range(flags.batch)]

    def tokens_a_second(form: dict[str, Any]) -> float:
        held = StructuredOutputs(**form) if form else None
        params = SamplingParams(temperature=flags.temperature, seed=3, max_tokens=flags.tokens, ignore_eos=True, structured_outputs=held)
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - begin)

    for form in FORMS.values():
        tokens_a_second(form)
    rounds = [{name: tokens_a_second(form) for name, form in FORMS.items()} for _ in range(flags.rounds)]
    medians = {name: statistics.median(taken[name] for taken in rounds) for name in FORMS}
    for name, speed in medians.items():
        print(f"{name:34} {speed:8.1f} tok/s  {speed / medians['free']:.3f} of free")


if __name__ == "__main__":
    main()
