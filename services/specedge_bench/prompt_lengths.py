"""How many tokens the target makes of a prompt, as the edge agent counts them."""

from collections.abc import Callable
from typing import Any

from specedge.model.embedded import resolve_model
from specedge.tokenizer import load_tokenizer
from specedge_bench.prompts.dataset import Prompt


def token_counter(target_model: str, reasoning: bool | None) -> Callable[[Prompt], int]:
    """A function that counts.

    Raises:
        ModelLoadError: the target's tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(resolve_model(target_model, "target"))
    variables: dict[str, Any] = {} if reasoning is None else {"enable_thinking": reasoning}

    def count(prompt: Prompt) -> int:
        if prompt.kind == "continuation":
            return len(tokenizer(prompt.text, verbose=False)["input_ids"])
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        return len(tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"])

    return count
