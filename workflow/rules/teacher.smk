# Teachers: those trained here, with a tokenizer of their own, and what any of them says.


rule train_tokenizer:
    """Train a small byte-level BPE tokenizer on the training stories."""
    input:
        unpack(lambda wildcards: text_file("train")),
    output:
        "<results>/train_tokenizer/{teacher}/tokenizer.json",
        "<results>/train_tokenizer/{teacher}/tokenizer_config.json",
        manifest="<results>/train_tokenizer/{teacher}/manifest.json",
    log:
        "<logs>/train_tokenizer/{teacher}.log",
    benchmark:
        "<benchmarks>/train_tokenizer/{teacher}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: PLAN.jobs.tokenizer(wildcards.teacher),
            *("vocabulary", "positions"),
        ),
        code=code_fingerprint("train_tokenizer"),
    script:
        "../../scripts/train_tokenizer.py"


rule pretrain_teacher:
    """Train a teacher from scratch on the corpus."""
    input:
        unpack(lambda wildcards: sequences_file(wildcards.teacher, "train")),
        tokenizer="<results>/train_tokenizer/{teacher}/manifest.json",
    output:
        [f"<results>/pretrain_teacher/{{teacher}}/{name}" for name in CHECKPOINT_FILES],
        manifest="<results>/pretrain_teacher/{teacher}/manifest.json",
    log:
        "<logs>/pretrain_teacher/{teacher}.log",
    benchmark:
        "<benchmarks>/pretrain_teacher/{teacher}.jsonl"
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
            lambda wildcards: PLAN.trainings.pretraining(wildcards.teacher),
            *("family", "architecture", "training", "save_precision"),
        ),
        seed=lambda wildcards: PLAN.models.pretrained(
            wildcards.teacher
        ).pretraining.seed,
        code=code_fingerprint("pretrain_teacher"),
    script:
        "../../scripts/pretrain_teacher.py"


rule import_model:
    """Take in a teacher from a local folder."""
    input:
        model=model_files,
    output:
        [f"<results>/import_model/{{teacher}}/{name}" for name in TEACHER_FILES],
        manifest="<results>/import_model/{teacher}/manifest.json",
    log:
        "<logs>/import_model/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: PLAN.jobs.import_model(wildcards.teacher),
            *("folder", "gguf", "family", "blocks", "save_precision"),
        ),
        code=code_fingerprint("import_model"),
    script:
        "../../scripts/import_model.py"


rule record_teacher:
    """Record what the teacher says about the sequences that a step adds, for all arms that ask for it."""
    input:
        unpack(baseline_inputs),
        unpack(earlier_answers),
    output:
        answers="<results>/record_teacher/{teacher}/{answers}/seed_{seed}/step_{step}/answers.json",
        manifest="<results>/record_teacher/{teacher}/{answers}/seed_{seed}/step_{step}/manifest.json",
    log:
        "<logs>/record_teacher/{teacher}/{answers}/seed_{seed}/step_{step}.log",
    benchmark:
        "<benchmarks>/record_teacher/{teacher}/{answers}/seed_{seed}/step_{step}.jsonl"
    # The chain may wait for it.
    priority: 20
    conda:
        "../../envs/iskd.yaml"
    resources:
        gpu=1,
        mem_mb=evaluation_memory,
        runtime=training_runtime,
    params:
        **params_of(
            lambda wildcards: PLAN.recordings.parameters(recording_place(wildcards)),
            *("kind", "teacher_precision", "temperature", "draws"),
            *("sequences", "validation"),
        ),
        seed=lambda wildcards: int(wildcards.seed),
        code=code_fingerprint("record_teacher"),
    script:
        "../../scripts/record_teacher.py"
