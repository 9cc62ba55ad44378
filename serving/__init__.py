"""Metered inference on a reserved pool. Knows vLLM; does not know how tokens are kept."""
