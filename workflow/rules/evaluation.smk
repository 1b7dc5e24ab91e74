# Every checkpoint on every task, as side branches of the chain.


rule evaluate:
    """Ask one model the rows of one task, through lm-eval."""
    input:
        unpack(evaluated_model),
        unpack(task_examples),
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
        **params_of(
            lambda wildcards: PLAN.jobs.evaluation(wildcards.task),
            *("task", "batch_size", "precision", "seed"),
        ),
        code=code_fingerprint("evaluate"),
    script:
        "../../scripts/evaluate.py"


rule evaluate_heldout:
    """Measure one model's next-token loss on a held-out text, and how far it is from its teacher."""
    input:
        unpack(heldout_inputs),
    output:
        result="<results>/evaluate_heldout/{model}/{text}/result.json",
        samples="<results>/evaluate_heldout/{model}/{text}/samples.jsonl.gz",
        manifest="<results>/evaluate_heldout/{model}/{text}/manifest.json",
    log:
        "<logs>/evaluate_heldout/{model}/{text}.log",
    benchmark:
        "<benchmarks>/evaluate_heldout/{model}/{text}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        gpu=1,
        mem_mb=evaluation_memory,
        runtime=training_runtime,
    params:
        **PLAN.jobs.heldout(),
        code=code_fingerprint("evaluate_heldout"),
    script:
        "../../scripts/evaluate_heldout.py"


rule generate:
    """Let one model continue the beginnings of held-out texts."""
    input:
        unpack(generation_inputs),
    output:
        "<results>/generate/{model}/samples.jsonl",
        report(
            "<results>/generate/{model}/samples.html",
            caption="../report/generate.rst",
            category="Generation",
            labels={"model": "{model}"},
        ),
        result="<results>/generate/{model}/result.json",
        manifest="<results>/generate/{model}/manifest.json",
    log:
        "<logs>/generate/{model}.log",
    benchmark:
        "<benchmarks>/generate/{model}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        gpu=1,
        mem_mb=evaluation_memory,
        runtime=training_runtime,
    params:
        **params_of(lambda wildcards: PLAN.jobs.generation(), "sampling", "precision"),
        seed=STUDY.generation.seed if STUDY.generation else None,
        code=code_fingerprint("generate"),
    script:
        "../../scripts/generate.py"


rule measure_overlap:
    """Measure which items of a task share words in a row with the training stories."""
    input:
        unpack(lambda wildcards: text_file("train")),
        rows_manifest="<results>/prepare_task/{task}/manifest.json",
        rows=ancient("<results>/prepare_task/{task}/rows.jsonl"),
    output:
        result="<results>/measure_overlap/{task}/result.json",
        runs="<results>/measure_overlap/{task}/items.jsonl.gz",
        manifest="<results>/measure_overlap/{task}/manifest.json",
    log:
        "<logs>/measure_overlap/{task}.log",
    benchmark:
        "<benchmarks>/measure_overlap/{task}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.overlap(),
        code=code_fingerprint("measure_overlap"),
    script:
        "../../scripts/measure_overlap.py"


EVALUATIONS = [
    f"<results>/evaluate/{model.path}/{task}/result.json"
    for model in PLAN.models.evaluated()
    for task in STUDY.tasks
]
ANSWERS = [file.replace("result.json", "samples.jsonl.gz") for file in EVALUATIONS]
SUBSTITUTIONS = [
    f"<results>/{PLAN.models.place(model)}/substitution.json"
    for model in PLAN.models.substituted()
]
HELDOUT_LOSSES = [
    f"<results>/evaluate_heldout/{model.path}/{text}/result.json"
    for model in PLAN.models.evaluated()
    for text in PLAN.jobs.text_names()
]
GENERATIONS = [
    f"<results>/generate/{model.path}/result.json" for model in PLAN.jobs.generating()
]
OVERLAPS = [f"<results>/measure_overlap/{task}/result.json" for task in STUDY.tasks]
HISTORIES = [
    f"<results>/{PLAN.models.place(model)}/history.jsonl"
    for model in PLAN.models.trained()
]


rule measure_efficiency:
    """Measure one model's speed and memory, in turn with its teacher's."""
    input:
        unpack(model_and_teacher),
    output:
        "<results>/measure_efficiency/{model}/result.json",
        repeats="<results>/measure_efficiency/{model}/repeats.jsonl",
        manifest="<results>/measure_efficiency/{model}/manifest.json",
    log:
        "<logs>/measure_efficiency/{model}.log",
    benchmark:
        "<benchmarks>/measure_efficiency/{model}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        gpu=1,
        mem_mb=evaluation_memory,
        runtime=training_runtime,
    params:
        **params_of(lambda wildcards: PLAN.jobs.efficiency(), "load", "precision"),
        seed=STUDY.evaluation.efficiency.seed if STUDY.evaluation.efficiency else None,
        code=code_fingerprint("measure_efficiency"),
    script:
        "../../scripts/measure_efficiency.py"


rule collect_metrics:
    """Collect all numbers of the study into one tidy table."""
    input:
        evaluations=ancient(EVALUATIONS),
        samples=ancient(ANSWERS),
        substitutions=ancient(SUBSTITUTIONS),
        heldout=ancient(HELDOUT_LOSSES),
        histories=ancient(HISTORIES),
        generations=ancient(GENERATIONS),
        overlaps=ancient(OVERLAPS),
        manifests=manifests_beside(
            [
                *EVALUATIONS,
                *HELDOUT_LOSSES,
                *HISTORIES,
                *GENERATIONS,
                *OVERLAPS,
                *SUBSTITUTIONS,
            ]
        ),
    output:
        metrics="<results>/metrics.csv",
        manifest="<results>/collect_metrics/manifest.json",
    log:
        "<logs>/collect_metrics.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.metrics(),
        code=code_fingerprint("collect_metrics"),
    script:
        "../../scripts/collect_metrics.py"


MEASURED = [
    f"<results>/measure_efficiency/{model.path}/repeats.jsonl"
    for model in PLAN.jobs.measured()
]
TRAINED = [
    f"<results>/{PLAN.models.place(model)}/manifest.json"
    for model in PLAN.models.all_trained()
]
EVALUATED = [
    manifest
    for model in PLAN.models.evaluated()
    for manifest in (
        *(f"<results>/evaluate/{model.path}/{t}/manifest.json" for t in STUDY.tasks),
        *(
            f"<results>/evaluate_heldout/{model.path}/{t}/manifest.json"
            for t in PLAN.jobs.text_names()
        ),
    )
]


rule collect_measurements:
    """Collect what clocks and sensors measured into one tidy table."""
    input:
        **metrics_file(),
        repeats=ancient(MEASURED),
        trained=TRAINED,
        evaluated=EVALUATED,
        manifests=manifests_beside(MEASURED),
    output:
        measurements="<results>/measurements.csv",
        manifest="<results>/collect_measurements/manifest.json",
    log:
        "<logs>/collect_measurements.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.measurements(),
        code=code_fingerprint("collect_measurements"),
    script:
        "../../scripts/collect_measurements.py"
