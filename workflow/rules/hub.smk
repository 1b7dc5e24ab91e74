# The rules that need a network. `snakemake prefetch` runs them all, on the login node.


rule prefetch:
    """Fetch everything a study needs from the hub; after it, no job needs a network."""
    input:
        expand(
            "<results>/download_model/{teacher}/manifest.json",
            teacher=PLAN.jobs.hub_teachers(),
        ),
        expand(
            "<results>/download_reference/{arm}/manifest.json",
            arm=PLAN.jobs.hub_arms(),
        ),
        expand(
            "<results>/download_task/{task}/manifest.json", task=PLAN.jobs.hub_tasks()
        ),
        expand(
            "<results>/download_text/{text}/manifest.json", text=PLAN.jobs.hub_texts()
        ),
        ["<results>/download_corpus/manifest.json"]
        if isinstance(STUDY.corpus, HubCorpus)
        else [],
    localrule: True


rule download_model:
    """Fetch a teacher at its pinned or locked commit."""
    output:
        [f"<results>/download_model/{{teacher}}/{name}" for name in TEACHER_FILES],
        manifest="<results>/download_model/{teacher}/manifest.json",
    log:
        "<logs>/download_model/{teacher}.log",
    localrule: True
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: STUDY.teachers[wildcards.teacher].model_dump(),
            *("model", "revision", "family", "blocks"),
        ),
        lock=HUB_LOCK,
        code=code_fingerprint("download_model"),
    script:
        "../../scripts/download_model.py"


rule download_reference:
    """Fetch a finished model, for a row of comparison, at its pinned or locked commit."""
    input:
        teacher=lambda wildcards: (
            f"<results>/{PLAN.models.place(PLAN.models.teacher_model(STUDY.arms[wildcards.arm].teacher))}/manifest.json"
        ),
    output:
        [f"<results>/download_reference/{{arm}}/{name}" for name in TEACHER_FILES],
        manifest="<results>/download_reference/{arm}/manifest.json",
    log:
        "<logs>/download_reference/{arm}.log",
    localrule: True
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: STUDY.arms[wildcards.arm].model_dump(),
            "model",
            "revision",
        ),
        lock=HUB_LOCK,
        code=code_fingerprint("download_reference"),
    script:
        "../../scripts/download_reference.py"


rule download_corpus:
    """Fetch the corpus at its pinned or locked commit."""
    output:
        texts="<results>/download_corpus/texts.jsonl",
        manifest="<results>/download_corpus/manifest.json",
    log:
        "<logs>/download_corpus.log",
    localrule: True
    conda:
        "../../envs/iskd.yaml"
    params:
        **STUDY.corpus.model_dump(include={"dataset", "revision", "split", "rows"}),
        lock=HUB_LOCK,
        code=code_fingerprint("download_corpus"),
    script:
        "../../scripts/download_corpus.py"


rule download_text:
    """Fetch a text beside the corpus at its pinned or locked commit."""
    output:
        texts="<results>/download_text/{text}/texts.jsonl",
        manifest="<results>/download_text/{text}/manifest.json",
    log:
        "<logs>/download_text/{text}.log",
    localrule: True
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: STUDY.texts[wildcards.text].model_dump(),
            *("dataset", "config", "revision", "split"),
        ),
        lock=HUB_LOCK,
        code=code_fingerprint("download_text"),
    script:
        "../../scripts/download_text.py"


rule download_task:
    """Fetch a task's rows at their pinned or locked commit."""
    output:
        rows="<results>/download_task/{task}/rows.jsonl",
        examples="<results>/download_task/{task}/examples.jsonl",
        manifest="<results>/download_task/{task}/manifest.json",
    log:
        "<logs>/download_task/{task}.log",
    localrule: True
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: PLAN.jobs.download(wildcards.task),
            *("dataset", "config", "revision", "split", "examples"),
        ),
        lock=HUB_LOCK,
        code=code_fingerprint("download_task"),
    script:
        "../../scripts/download_task.py"
