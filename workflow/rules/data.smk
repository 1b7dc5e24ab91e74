# From raw text to stories, tokens and task rows.


rule make_toyworld:
    """Make the embedded world's stories and its two tasks from a seed."""
    output:
        train="<results>/make_toyworld/train.jsonl",
        heldout="<results>/make_toyworld/heldout.jsonl",
        cbt="<results>/make_toyworld/cbt.jsonl",
        hellaswag="<results>/make_toyworld/hellaswag.jsonl",
        manifest="<results>/make_toyworld/manifest.json",
    log:
        "<logs>/make_toyworld.log",
    benchmark:
        "<benchmarks>/make_toyworld.jsonl"
    conda:
        "../../envs/iskd.yaml"
    params:
        world=STUDY.corpus.model_dump(exclude={"source", "seed", "block_length", "mix"}),
        seed=STUDY.corpus.seed,
        code=code_fingerprint("make_toyworld"),
    script:
        "../../scripts/make_toyworld.py"


rule split_corpus:
    """Split a corpus that is not made here into stories to train on and held-out ones."""
    input:
        texts=corpus_texts,
        manifest=corpus_manifest,
    output:
        train="<results>/split_corpus/train.jsonl",
        heldout="<results>/split_corpus/heldout.jsonl",
        manifest="<results>/split_corpus/manifest.json",
    log:
        "<logs>/split_corpus.log",
    benchmark:
        "<benchmarks>/split_corpus.jsonl"
    conda:
        "../../envs/iskd.yaml"
    params:
        **STUDY.corpus.model_dump(include={"rows", "heldout_share"}),
        seed=STUDY.corpus.seed,
        code=code_fingerprint("split_corpus"),
    script:
        "../../scripts/split_corpus.py"


rule prepare_corpus:
    """Cut the stories into token sequences of fixed length with a teacher's tokenizer."""
    input:
        unpack(lambda wildcards: text_file("train") | text_file("heldout")),
        tokenizer=tokenizer_manifest,
    output:
        train="<results>/prepare_corpus/{teacher}/train.safetensors",
        heldout="<results>/prepare_corpus/{teacher}/heldout.safetensors",
        manifest="<results>/prepare_corpus/{teacher}/manifest.json",
    log:
        "<logs>/prepare_corpus/{teacher}.log",
    benchmark:
        "<benchmarks>/prepare_corpus/{teacher}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        block_length=STUDY.corpus.block_length,
        code=code_fingerprint("prepare_corpus"),
    script:
        "../../scripts/prepare_corpus.py"


rule mix_corpus:
    """Mix the corpus's training sequences with those of texts beside it."""
    input:
        own=ancient("<results>/prepare_corpus/{teacher}/train.safetensors"),
        others=lambda wildcards: [
            ancient(
                f"<results>/prepare_text/{wildcards.teacher}/{text}/blocks.safetensors"
            )
            for text in STUDY.corpus.mix
        ],
        manifests=lambda wildcards: [
            f"<results>/prepare_corpus/{wildcards.teacher}/manifest.json",
            *(
                f"<results>/prepare_text/{wildcards.teacher}/{text}/manifest.json"
                for text in STUDY.corpus.mix
            ),
        ],
    output:
        train="<results>/mix_corpus/{teacher}/train.safetensors",
        manifest="<results>/mix_corpus/{teacher}/manifest.json",
    log:
        "<logs>/mix_corpus/{teacher}.log",
    benchmark:
        "<benchmarks>/mix_corpus/{teacher}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        mix=STUDY.corpus.mix,
        code=code_fingerprint("mix_corpus"),
    script:
        "../../scripts/mix_corpus.py"


rule make_text:
    """Make a text beside the corpus from a seed."""
    output:
        texts="<results>/make_text/{text}/texts.jsonl",
        manifest="<results>/make_text/{text}/manifest.json",
    log:
        "<logs>/make_text/{text}.log",
    benchmark:
        "<benchmarks>/make_text/{text}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: STUDY.texts[wildcards.text].model_dump(),
            *("stories", "words"),
        ),
        seed=lambda wildcards: STUDY.texts[wildcards.text].seed,
        code=code_fingerprint("make_text"),
    script:
        "../../scripts/make_text.py"


rule prepare_text:
    """Cut a text beside the corpus into token sequences with a teacher's tokenizer."""
    input:
        unpack(text_sources),
        tokenizer=tokenizer_manifest,
    output:
        blocks="<results>/prepare_text/{teacher}/{text}/blocks.safetensors",
        manifest="<results>/prepare_text/{teacher}/{text}/manifest.json",
    log:
        "<logs>/prepare_text/{teacher}/{text}.log",
    benchmark:
        "<benchmarks>/prepare_text/{teacher}/{text}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **params_of(
            lambda wildcards: PLAN.jobs.text(wildcards.text), "rows", "block_length"
        ),
        seed=lambda wildcards: STUDY.texts[wildcards.text].seed,
        code=code_fingerprint("prepare_text"),
    script:
        "../../scripts/prepare_text.py"


rule prepare_task:
    """Put a task's rows into one file, drawn from the seed, wherever they come from."""
    input:
        unpack(task_rows),
    output:
        rows="<results>/prepare_task/{task}/rows.jsonl",
        manifest="<results>/prepare_task/{task}/manifest.json",
    log:
        "<logs>/prepare_task/{task}.log",
    benchmark:
        "<benchmarks>/prepare_task/{task}.jsonl"
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: PLAN.jobs.rows(wildcards.task),
            *("kind", "stock", "source", "rows"),
        ),
        seed=lambda wildcards: STUDY.tasks[wildcards.task].seed,
        code=code_fingerprint("prepare_task"),
    script:
        "../../scripts/prepare_task.py"
