"""Lean models: the dense Llama, Qwen2, Qwen3 and Mistral families in few operations, loaded without transformers."""
