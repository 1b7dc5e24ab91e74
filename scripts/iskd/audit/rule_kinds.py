"""What each rule is for, by what its name begins with."""

DATA = ("download_", "import_", "make_", "mix_", "prepare_", "split_", "train_tokenizer")
"""Rules whose artifacts come from outside, are made of nothing, or are cut of those."""

TRAININGS = ("distill_", "drop_", "pretrain_", "prune_", "substitute_", "tune_")
"""Rules whose artifacts are checkpoints."""

EVALUATIONS = ("evaluate", "generate", "measure_")
"""Rules that ask a checkpoint, or rows, something."""

FROM_ITEMS = ("collect_measurements", "collect_metrics")
"""Rules that work out numbers of per-item files."""

FROM_NUMBERS = ("collect_paper", "figure_", "model_card", "paper_", "summarize", "table_")
"""Rules whose artifacts are made of numbers alone."""
