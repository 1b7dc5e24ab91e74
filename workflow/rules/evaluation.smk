# Every checkpoint on every task, as side branches of the chain.


rule evaluate:
    """Ask one model the rows of one task, through lm-eval."""
    input:
        unpack(evaluated_model),
        rows_manifest="<results>/prepare_task/{task}/manifest.json",
        rows=ancient("<results>/prepare_task/{task}/rows.jsonl"),
    output:
        result="<results>/evaluate/{model}/{task}/result.json",
        samples="<results>/evaluate/{model}/{task}/samples.jsonl.gz",
        manifest="<results>/evaluate/{model}/{task}/manifest.json",
    log:
        "<logs>/evaluate/{model}/{task}.log",
    benchmark:
        "<benchmarks>/evaluate/{model}/{task}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        gpu=1,
        mem_mb=evaluation_memory,
        runtime=training_runtime,
    params:
        spec=lambda wildcards: PLAN.evaluation_spec(wildcards.task),
        code=code_fingerprint("evaluate"),
    script:
        "../../scripts/evaluate.py"


rule evaluate_heldout:
    """Measure one model's next-token loss on the held-out stories."""
    input:
        unpack(heldout_inputs),
    output:
        result="<results>/evaluate_heldout/{model}/result.json",
        manifest="<results>/evaluate_heldout/{model}/manifest.json",
    log:
        "<logs>/evaluate_heldout/{model}.log",
    benchmark:
        "<benchmarks>/evaluate_heldout/{model}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        gpu=1,
        mem_mb=evaluation_memory,
        runtime=training_runtime,
    params:
        spec=PLAN.heldout_spec(),
        code=code_fingerprint("evaluate_heldout"),
    script:
        "../../scripts/evaluate_heldout.py"


EVALUATIONS = [
    f"<results>/evaluate/{model.path}/{task}/result.json"
    for model in PLAN.models()
    for task in STUDY.tasks
]
HELDOUT_LOSSES = [
    f"<results>/evaluate_heldout/{model.path}/result.json" for model in PLAN.models()
]
HISTORIES = [f"<results>/{PLAN.place(model)}/history.jsonl" for model in PLAN.trained()]


rule collect_metrics:
    """Collect all numbers of the study into one tidy table."""
    input:
        evaluations=ancient(EVALUATIONS),
        heldout=ancient(HELDOUT_LOSSES),
        histories=ancient(HISTORIES),
        manifests=manifests_beside([*EVALUATIONS, *HELDOUT_LOSSES, *HISTORIES]),
    output:
        metrics="<results>/metrics.csv",
        manifest="<results>/collect_metrics/manifest.json",
    log:
        "<logs>/collect_metrics.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.collection_spec(),
        code=code_fingerprint("collect_metrics"),
    script:
        "../../scripts/collect_metrics.py"
