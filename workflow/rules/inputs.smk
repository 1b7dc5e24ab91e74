# What the rules' inputs, parameters, outputs and resources are worked out with.

# --- places ---------------------------------------------------------------------------------


def model_folder(model):
    """Give the folder of a model's artifact."""
    return f"<results>/{PLAN.models.place(model)}"


def model_inputs(name, model):
    """Give a model's manifest as input: it names the weights by digest, and decides on reruns."""
    return {name: f"{model_folder(model)}/manifest.json"}


def manifests_beside(files):
    """Give the manifest of each artifact that these files belong to."""
    return list(
        dict.fromkeys(f"{file.rpartition('/')[0]}/manifest.json" for file in files)
    )


def metrics_file():
    """Give the study's table of numbers."""
    return {
        "metrics_manifest": "<results>/collect_metrics/manifest.json",
        "metrics": ancient("<results>/metrics.csv"),
    }


def measurements_file():
    """Give the study's table of what clocks and sensors measured."""
    return {
        "measurements_manifest": "<results>/collect_measurements/manifest.json",
        "measurements": ancient("<results>/measurements.csv"),
    }


def text_file(part):
    """Give the stories to train on or those held out."""
    maker = "make_toyworld" if isinstance(STUDY.corpus, ToyCorpus) else "split_corpus"
    return {
        f"{part}_manifest": f"<results>/{maker}/manifest.json",
        part: ancient(f"<results>/{maker}/{part}.jsonl"),
    }


def sequences_file(teacher, part):
    """Give a teacher's token sequences: to train on, with what is mixed in, or held out."""
    mixed = part == "train" and STUDY.corpus.mix
    folder = f"<results>/{'mix_corpus' if mixed else 'prepare_corpus'}/{teacher}"
    return {
        f"{part}_manifest": f"{folder}/manifest.json",
        part: ancient(f"{folder}/{part}.safetensors"),
    }


def text_sequences(teacher, text):
    """Give a teacher's token sequences of a held-out text: the corpus's, or one beside it."""
    if text == HELDOUT:
        return sequences_file(teacher, "heldout")
    folder = f"<results>/prepare_text/{teacher}/{text}"
    return {
        "heldout_manifest": f"{folder}/manifest.json",
        "heldout": ancient(f"{folder}/blocks.safetensors"),
    }


def wildcard_model(wildcards):
    """Give the model that a rule with teacher, arm, seed and step makes."""
    return ModelId(
        wildcards.teacher, wildcards.arm, int(wildcards.seed), int(wildcards.step)
    )


def plans():
    """List the plan of every arm that replaces blocks."""
    return [
        f"<results>/plan_substitutions/{teacher}/{name}/seed_{seed}/manifest.json"
        for teacher in STUDY.teachers
        for name, arm in STUDY.arms.items()
        if isinstance(arm, Replacing)
        for seed in PLAN.models.seeds(arm)
    ]


def headline_models():
    """List the models that a study is about and their cards, so that a deleted one is made again."""
    return [
        f"{model_folder(model)}/{name}"
        for model in PLAN.jobs.carded()
        for name in ("manifest.json", "README.md")
    ]


def local_file(name):
    """Give a local file of the study, which a module's prefix does not move."""
    return local(str(data_folder(STUDY, config_name()) / name))


# --- inputs of rules ------------------------------------------------------------------------


def corpus_texts(wildcards):
    """Find the files that hold a corpus that is not made here."""
    if isinstance(STUDY.corpus, HubCorpus):
        return [ancient("<results>/download_corpus/texts.jsonl")]
    return [local_file(name) for name in STUDY.corpus.files]


def corpus_manifest(wildcards):
    """Find the manifest beside a fetched corpus; local files have none."""
    if isinstance(STUDY.corpus, HubCorpus):
        return ["<results>/download_corpus/manifest.json"]
    return []


def text_sources(wildcards):
    """Find the files that hold a text beside the corpus, and the manifest of what is made here."""
    text = STUDY.texts[wildcards.text]
    if isinstance(text, FileText):
        return {"texts": [local_file(name) for name in text.files]}
    maker = "download_text" if isinstance(text, HubText) else "make_text"
    folder = f"<results>/{maker}/{wildcards.text}"
    return {
        "texts": [ancient(f"{folder}/texts.jsonl")],
        "texts_manifest": f"{folder}/manifest.json",
    }


def tokenizer_manifest(wildcards):
    """Find a teacher's tokenizer: trained here, or given with the teacher."""
    maker = PLAN.models.producer(PLAN.models.teacher_model(wildcards.teacher))
    if maker == "pretrain_teacher":
        maker = "train_tokenizer"
    return f"<results>/{maker}/{wildcards.teacher}/manifest.json"


def model_files(wildcards):
    """Find the files of a teacher in a local folder."""
    teacher = STUDY.teachers[wildcards.teacher]
    if not isinstance(teacher, FolderTeacher):
        return []
    return [local_file(f"{teacher.folder}/{name}") for name in teacher.files]


def task_rows(wildcards):
    """Find the rows of a task before they are drawn."""
    task = STUDY.tasks[wildcards.task]
    if task.source == "heldout":
        found = text_file("heldout")
        return {"rows": found["heldout"], "rows_manifest": found["heldout_manifest"]}
    if task.source == "file":
        return {"rows": local_file(task.file)}
    if task.source == "toyworld":
        name = "hellaswag" if PLAN.jobs.kind(wildcards.task) == "hellaswag" else "cbt"
        folder, file = "<results>/make_toyworld", f"{name}.jsonl"
    else:
        folder, file = f"<results>/download_task/{wildcards.task}", "rows.jsonl"
    return {
        "rows": ancient(f"{folder}/{file}"),
        "rows_manifest": f"{folder}/manifest.json",
    }


def task_examples(wildcards):
    """Give the rows that examples for prompts are drawn from, where a task has any."""
    if not PLAN.jobs.fewshot(wildcards.task):
        return {}
    folder = f"<results>/download_task/{wildcards.task}"
    return {
        "examples": ancient(f"{folder}/examples.jsonl"),
        "examples_manifest": f"{folder}/manifest.json",
    }


def baseline_inputs(wildcards):
    """Give a baseline the teacher and the tokens."""
    teacher = PLAN.models.teacher_model(wildcards.teacher)
    return model_inputs("teacher", teacher) | sequences_file(wildcards.teacher, "train")


def recorded_answers(wildcards):
    """Give the teacher's recorded answers that a model's training reads, if it reads any."""
    read = PLAN.recordings.read_by(wildcard_model(wildcards))
    return (
        {"answers": [f"<results>/{one.place}/manifest.json" for one in read]}
        if read
        else {}
    )


def recording_place(wildcards):
    """Give the place of the answers that a step adds to those before it."""
    folder = f"{wildcards.teacher}/{wildcards.answers}/seed_{wildcards.seed}"
    return f"record_teacher/{folder}/step_{wildcards.step}"


def earlier_answers(wildcards):
    """Give what the steps before have recorded, if there are any."""
    before = PLAN.recordings.before(recording_place(wildcards))
    manifests = [f"<results>/{one.place}/manifest.json" for one in before]
    return {"earlier": manifests} if manifests else {}


def evaluated_model(wildcards):
    """Give the model to evaluate."""
    return model_inputs("model", ModelId.parse(wildcards.model))


def model_and_teacher(wildcards):
    """Give the model to measure and the teacher it is compared with, if it is another one."""
    model = ModelId.parse(wildcards.model)
    teacher = PLAN.models.teacher_model(model.teacher)
    beside = {} if model == teacher else model_inputs("teacher", teacher)
    return evaluated_model(wildcards) | beside


def teacher_manifest(wildcards):
    """Find the manifest of the teacher that a model was made from."""
    teacher = PLAN.models.teacher_model(ModelId.parse(wildcards.model).teacher)
    return model_inputs("teacher", teacher)["teacher"]


def heldout_inputs(wildcards):
    """Give the model, its teacher, and the tokens of the text."""
    teacher = ModelId.parse(wildcards.model).teacher
    return model_and_teacher(wildcards) | text_sequences(teacher, wildcards.text)


def generation_inputs(wildcards):
    """Give the model, its teacher, and the held-out tokens that prompts are taken from."""
    teacher = ModelId.parse(wildcards.model).teacher
    return model_and_teacher(wildcards) | sequences_file(teacher, "heldout")


# --- parameters -----------------------------------------------------------------------------


def params_of(describe, *names):
    """Give a rule its parameters by name, so that a rerun names the one that has changed.

    `describe` works all of them out from the wildcards.
    """

    def named(name):
        return lambda wildcards: describe(wildcards)[name]

    return {name: named(name) for name in names}


def baseline_params(*names):
    """Give a baseline the parameters of all of them, and those of its method."""
    return params_of(
        lambda wildcards: PLAN.trainings.baseline(wildcard_model(wildcards)),
        *("training", "objective", "validation", "save_precision"),
        *names,
    )


# --- outputs --------------------------------------------------------------------------------


def checkpoint_output(rule, *more):
    """List what a rule that trains one of an arm's models writes, its manifest left out."""
    folder = f"<results>/{rule}/{{teacher}}/{{arm}}/seed_{{seed}}/step_{{step}}"
    return [f"{folder}/{name}" for name in [*CHECKPOINT_FILES, *more]]


def figure_output(name, title):
    """Give the files of a teacher's figure, of which the report shows a page with its caption."""
    stem = f"<results>/figure_{name}/{{teacher}}/{name}"
    shown = report(
        f"{stem}.html",
        caption=f"../report/figure_{name}.rst",
        category="Figures",
        labels={"figure": title, "teacher": "{teacher}"},
    )
    return [*multiext(stem, ".pdf", ".svg", ".png", ".csv"), shown]


def caption_of(name):
    """Read what the report says below a figure; as a parameter, Snakemake fills in the teacher."""
    file = RULES.parent / "report" / f"figure_{name}.rst"
    text = file.read_text(encoding="utf-8")
    return text.replace("{{ snakemake.wildcards.teacher }}", "{teacher}")


def table_output(name, title):
    """Give the files of a table, of which the report shows one."""
    stem = f"<results>/table_{name}/{name}"
    shown = report(
        f"{stem}.html",
        caption=f"../report/table_{name}.rst",
        category="Tables",
        labels={"table": title},
    )
    return [*multiext(stem, ".tex", ".md", ".csv"), shown]


# --- resources ------------------------------------------------------------------------------


def training_gpus(wildcards):
    """Ask for the GPUs that a training of this teacher takes; without any, for as many cores."""
    return STUDY.teachers[wildcards.teacher].gpus


def training_mode(wildcards):
    """Say how several GPUs share a training; a resource, because a change must not rerun it."""
    return STUDY.teachers[wildcards.teacher].parallel


def training_trackers(wildcards):
    """Name what shows a training while it runs; a resource, because a change must not rerun it."""
    # Nobody looks at a training that is made again for an audit.
    alone = "ISKD_PLAN_ONLY" in os.environ
    return "none" if alone else "+".join(STUDY.tracking.trackers) or "none"


def evaluation_memory(wildcards, attempt):
    """Ask for memory in MB, half as much again with every attempt."""
    return int(16000 * 1.5 ** (attempt - 1))


def training_memory(wildcards, attempt):
    """Ask for the same for each of a training's processes, which all load the model."""
    return training_gpus(wildcards) * evaluation_memory(wildcards, attempt)


def training_runtime(wildcards, attempt):
    """Ask for time in minutes, twice as much with every attempt, up to a day.

    A training that takes longer goes on from its state: it needs further calls, not more time.
    """
    return min(240 * 2 ** (attempt - 1), 1440)
