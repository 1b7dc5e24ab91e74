# What ISKD is compared with, at the same parameters and on the same tokens.


rule tune_teacher:
    """Tune a baseline on the tokens its reference was tuned on: the teacher itself, or one made of it."""
    input:
        unpack(baseline_inputs),
        unpack(recorded_answers),
    output:
        checkpoint_output("tune_teacher"),
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
        report_to=training_trackers,
        mem_mb=training_memory,
        runtime=training_runtime,
    params:
        **baseline_params(),
        seed=lambda wildcards: int(wildcards.seed),
        script="tune_teacher",
        code=code_fingerprint("tune_teacher"),
    script:
        "../../scripts/{params.script}.py"


# Remove the weakest heads and neurons down to the reference's size, then tune.
use rule tune_teacher as prune_l1 with:
    output:
        checkpoint_output("prune_l1", "removed.json"),
        manifest="<results>/prune_l1/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/prune_l1/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/prune_l1/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    params:
        **baseline_params("sizes", "reference_blocks"),
        script="prune_l1",
        code=code_fingerprint("prune_l1"),


# Leave out the blocks of least influence, then tune the rest.
use rule tune_teacher as drop_layers with:
    output:
        checkpoint_output("drop_layers", "dropped.json"),
        manifest="<results>/drop_layers/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/drop_layers/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/drop_layers/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    params:
        **baseline_params("sizes", "reference_blocks", "selection"),
        script="drop_layers",
        code=code_fingerprint("drop_layers"),


# Train a smaller student, fresh or made of the teacher's blocks, with its predictions.
use rule tune_teacher as distill_student with:
    output:
        checkpoint_output("distill_student", "student.json"),
        manifest="<results>/distill_student/{teacher}/{arm}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/distill_student/{teacher}/{arm}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/distill_student/{teacher}/{arm}/seed_{seed}/step_{step}.jsonl"
    params:
        **baseline_params("sizes", "reference_blocks", "student"),
        script="distill_student",
        code=code_fingerprint("distill_student"),
