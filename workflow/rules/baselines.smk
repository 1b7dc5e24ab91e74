# What ISKD is compared with, at the same parameters and on the same tokens.


rule prune_l1:
    """Remove the weakest heads and neurons down to the reference's size, then tune."""
    input:
        unpack(baseline_inputs),
    output:
        [
            f"<results>/prune_l1/{{teacher}}/{{arm}}/seed_{{seed}}/step_{{step}}/{name}"
            for name in [*CHECKPOINT_FILES, "removed.json"]
        ],
        manifest="<results>/prune_l1/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/prune_l1/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/prune_l1/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    threads: training_gpus
    resources:
        gpu=training_gpus,
        processes=training_gpus,
        parallel=training_mode,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        spec=lambda wildcards: PLAN.baseline_spec(wildcard_model(wildcards)),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("prune_l1"),
    script:
        "../../scripts/prune_l1.py"


rule drop_layers:
    """Leave out the blocks of least influence, then tune the rest."""
    input:
        unpack(baseline_inputs),
    output:
        [
            f"<results>/drop_layers/{{teacher}}/{{arm}}/seed_{{seed}}/step_{{step}}/{name}"
            for name in [*CHECKPOINT_FILES, "dropped.json"]
        ],
        manifest="<results>/drop_layers/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/drop_layers/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/drop_layers/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    threads: training_gpus
    resources:
        gpu=training_gpus,
        processes=training_gpus,
        parallel=training_mode,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        spec=lambda wildcards: PLAN.baseline_spec(wildcard_model(wildcards)),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("drop_layers"),
    script:
        "../../scripts/drop_layers.py"


rule distill_student:
    """Train a smaller student, fresh or made of the teacher's blocks, with its predictions."""
    input:
        unpack(baseline_inputs),
    output:
        [
            f"<results>/distill_student/{{teacher}}/{{arm}}/seed_{{seed}}/step_{{step}}/{name}"
            for name in [*CHECKPOINT_FILES, "student.json"]
        ],
        manifest="<results>/distill_student/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/distill_student/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/distill_student/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    threads: training_gpus
    resources:
        gpu=training_gpus,
        processes=training_gpus,
        parallel=training_mode,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        spec=lambda wildcards: PLAN.baseline_spec(wildcard_model(wildcards)),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("distill_student"),
    script:
        "../../scripts/distill_student.py"


rule tune_teacher:
    """Tune the whole teacher on the tokens the reference was tuned on."""
    input:
        unpack(baseline_inputs),
    output:
        [
            f"<results>/tune_teacher/{{teacher}}/{{arm}}/seed_{{seed}}/step_{{step}}/{name}"
            for name in CHECKPOINT_FILES
        ],
        manifest="<results>/tune_teacher/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/tune_teacher/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/tune_teacher/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    threads: training_gpus
    resources:
        gpu=training_gpus,
        processes=training_gpus,
        parallel=training_mode,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        spec=lambda wildcards: PLAN.baseline_spec(wildcard_model(wildcards)),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("tune_teacher"),
    script:
        "../../scripts/tune_teacher.py"
