"""A study of a thousand jobs plans as a small one does."""

import time

from .conftest import Clone

SEEDS = 50


def test_a_study_of_a_thousand_jobs_plans(clone: Clone) -> None:
    seeds = ", ".join(str(seed) for seed in range(SEEDS))
    clone.edit("tests/config/tiny.yaml", "seeds: [3]", f"seeds: [{seeds}]")
    started = time.monotonic()
    counts = clone.planned("--configfile", "tests/config/tiny.yaml")
    seconds = time.monotonic() - started
    models, tasks = 4 * SEEDS + 1, 2  # two steps and two baselines per seed, and the teacher
    assert counts == {
        "make_toyworld": 1,
        "train_tokenizer": 1,
        "prepare_corpus": 1,
        "prepare_task": tasks,
        "pretrain_teacher": 1,
        "plan_substitutions": SEEDS,
        "substitute_block": 2 * SEEDS,
        "prune_l1": SEEDS,
        "distill_student": SEEDS,
        "evaluate": models * tasks,
        "evaluate_heldout": models,
        "measure_overlap": tasks,
        # Only the first seed's models are timed.
        "measure_efficiency": 3,
        "model_card": 3 * SEEDS,
        **dict.fromkeys(("collect_metrics", "collect_measurements", "summarize"), 1),
        **dict.fromkeys(("figure_tradeoff", "figure_loss", "figure_pareto"), 1),
        **dict.fromkeys(("figure_training", "figure_flips", "figure_order"), 1),
        **dict.fromkeys(("table_main", "table_significance", "table_ablation"), 1),
        **dict.fromkeys(("table_efficiency", "table_costs"), 1),
        **dict.fromkeys(("paper_numbers", "paper_measured_numbers"), 1),
        **dict.fromkeys(("collect_paper", "paper_bundle"), 1),
    }
    assert sum(counts.values()) >= 1000
    print(f"{sum(counts.values())} jobs planned in {seconds:.1f} s")
