# The chain: one job and one checkpoint per replaced block.


rule plan_substitutions:
    """Write down which block goes when and how many parameters each step leaves.

    Nothing waits for a plan, as a longer one must not repeat the steps already made: each job
    works out its own sizes, from parameters that say all they depend on.
    """
    input:
        unpack(
            lambda wildcards: model_inputs(
                "teacher", PLAN.models.teacher_model(wildcards.teacher)
            )
        ),
    output:
        plan="<results>/plan_substitutions/{teacher}/{arm}/seed_{seed}/plan.json",
        manifest="<results>/plan_substitutions/{teacher}/{arm}/seed_{seed}/manifest.json",
    log:
        "<logs>/plan_substitutions/{teacher}/{arm}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/plan_substitutions/{teacher}/{arm}/seed_{seed}.jsonl"
    # Sizes that do not fit are reported before anything is trained.
    priority: 20
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: PLAN.trainings.plan(
                ModelId(wildcards.teacher, wildcards.arm, int(wildcards.seed), 0)
            ),
            *("order", "steps", "sizes"),
        ),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("plan_substitutions"),
    script:
        "../../scripts/plan_substitutions.py"


rule substitute_block:
    """Replace the step's block by a compact one and fine-tune the whole model."""
    input:
        unpack(
            lambda wildcards: model_inputs(
                "previous", PLAN.models.previous(wildcard_model(wildcards))
            )
        ),
        unpack(
            lambda wildcards: model_inputs(
                "teacher", PLAN.models.teacher_model(wildcards.teacher)
            )
        ),
        unpack(lambda wildcards: sequences_file(wildcards.teacher, "train")),
        unpack(recorded_answers),
    output:
        checkpoint_output("substitute_block", "substitution.json"),
        manifest="<results>/substitute_block/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/substitute_block/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/substitute_block/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    # Everything waits for the chain, so it goes before the side branches.
    priority: 10
    conda:
        "../../envs/iskd.yaml"
    threads: training_gpus
    resources:
        gpu=training_gpus,
        processes=training_gpus,
        parallel=training_mode,
        report_to=training_trackers,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        **params_of(
            lambda wildcards: PLAN.trainings.substitution(wildcard_model(wildcards)),
            *(
                "block",
                "sizes",
                "start",
                "training",
                "objective",
                "warm_start",
                "validation",
            ),
            *("as_published", "save_precision", "keep_master"),
        ),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("substitute_block"),
    script:
        "../../scripts/substitute_block.py"


rule substitute_at_once:
    """Replace all blocks of a step at once, or stochastically, and fine-tune the whole model."""
    input:
        unpack(baseline_inputs),
        unpack(recorded_answers),
    output:
        checkpoint_output("substitute_at_once", "substitution.json"),
        manifest="<results>/substitute_at_once/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/substitute_at_once/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/substitute_at_once/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    threads: training_gpus
    resources:
        gpu=training_gpus,
        processes=training_gpus,
        parallel=training_mode,
        report_to=training_trackers,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        **params_of(
            lambda wildcards: PLAN.trainings.at_once(wildcard_model(wildcards)),
            *(
                "blocks",
                "sizes",
                "start",
                "training",
                "objective",
                "warm_start",
                "validation",
            ),
            *("first", "curriculum", "save_precision"),
        ),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("substitute_at_once"),
    script:
        "../../scripts/substitute_at_once.py"
