"""Two mixtures of experts whose experts know one skill each, and whose gates know few of the ways to ask for it."""

MOE_MODELS = ("olmoe", "qwen3_moe")
