# From the numbers to figures, tables, macros, the report's first page and model cards.

TABLE_FORMATS = ["tex", "csv", "md", "html"]
FIGURE_FORMATS = ["pdf", "svg", "png", "csv"]
NUMBER_FORMATS = ["tex", "csv", "md"]


rule figure_loss:
    """Draw a figure of one teacher's arms: losses by step, and in the rules made of this one others."""
    input:
        **metrics_file(),
    output:
        figure_output("loss", "2 loss by step"),
        manifest="<results>/figure_loss/{teacher}/manifest.json",
    log:
        "<logs>/figure_loss/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        caption=caption_of("loss"),
        script="figure_loss",
        code=code_fingerprint("figure_loss"),
    script:
        "../../scripts/{params.script}.py"


# Scores and held-out loss of one teacher's arms against reduction.
use rule figure_loss as figure_tradeoff with:
    output:
        figure_output("tradeoff", "1 trade-off"),
        manifest="<results>/figure_tradeoff/{teacher}/manifest.json",
    log:
        "<logs>/figure_tradeoff/{teacher}.log",
    params:
        **PLAN.jobs.reporting(),
        caption=caption_of("tradeoff"),
        script="figure_tradeoff",
        code=code_fingerprint("figure_tradeoff"),


# One teacher's losses against parameters, measured speed and measured memory.
use rule figure_loss as figure_pareto with:
    input:
        **metrics_file(),
        **measurements_file(),
    output:
        figure_output("pareto", "3 Pareto fronts"),
        manifest="<results>/figure_pareto/{teacher}/manifest.json",
    log:
        "<logs>/figure_pareto/{teacher}.log",
    params:
        caption=caption_of("pareto"),
        script="figure_pareto",
        code=code_fingerprint("figure_pareto"),


# One teacher's training curves across steps.
use rule figure_loss as figure_training with:
    input:
        histories=ancient(HISTORIES),
        manifests=manifests_beside(HISTORIES),
    output:
        figure_output("training", "4 training curves"),
        manifest="<results>/figure_training/{teacher}/manifest.json",
    log:
        "<logs>/figure_training/{teacher}.log",
    params:
        **PLAN.jobs.curves(),
        caption=caption_of("training"),
        script="figure_training",
        code=code_fingerprint("figure_training"),


# The answers that changed against the change of accuracy, for one teacher.
use rule figure_loss as figure_flips with:
    output:
        figure_output("flips", "5 changed answers"),
        manifest="<results>/figure_flips/{teacher}/manifest.json",
    log:
        "<logs>/figure_flips/{teacher}.log",
    params:
        **PLAN.jobs.reporting(),
        caption=caption_of("flips"),
        script="figure_flips",
        code=code_fingerprint("figure_flips"),


# What each step changed of one teacher, and what it added to the loss.
use rule figure_loss as figure_order with:
    input:
        **metrics_file(),
        substitutions=ancient(SUBSTITUTIONS),
        manifests=manifests_beside(SUBSTITUTIONS),
    output:
        figure_output("order", "6 order and damage"),
        manifest="<results>/figure_order/{teacher}/manifest.json",
    log:
        "<logs>/figure_order/{teacher}.log",
    params:
        **PLAN.jobs.substitutions(),
        caption=caption_of("order"),
        script="figure_order",
        code=code_fingerprint("figure_order"),


rule table_main:
    """Write a table of the arms at the headline step, as LaTeX, Markdown, CSV and HTML."""
    input:
        **metrics_file(),
    output:
        table_output("main", "1 main results"),
        manifest="<results>/table_main/manifest.json",
    log:
        "<logs>/table_main.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.reporting(),
        headline_step=PLAN.models.headline_steps(),
        script="table_main",
        code=code_fingerprint("table_main"),
    script:
        "../../scripts/{params.script}.py"


# How each arm differs from its teacher, and how sure that is.
use rule table_main as table_significance with:
    output:
        table_output("significance", "2 differences to the teacher"),
        manifest="<results>/table_significance/manifest.json",
    log:
        "<logs>/table_significance.log",
    params:
        script="table_significance",
        code=code_fingerprint("table_significance"),


# What each arm cost and what it closes of the first iskd arm's gap to the teacher.
use rule table_main as table_ablation with:
    output:
        table_output("ablation", "3 ablation"),
        manifest="<results>/table_ablation/manifest.json",
    log:
        "<logs>/table_ablation.log",
    params:
        baseline=next(PLAN.models.iskd_arms(), None),
        script="table_ablation",
        code=code_fingerprint("table_ablation"),


# What each arm needs: parameters, memory and speed, beside its teacher.
use rule table_main as table_efficiency with:
    input:
        **metrics_file(),
        **measurements_file(),
    output:
        table_output("efficiency", "4 efficiency"),
        manifest="<results>/table_efficiency/manifest.json",
    log:
        "<logs>/table_efficiency.log",
    params:
        script="table_efficiency",
        code=code_fingerprint("table_efficiency"),


# What each arm cost: tokens, FLOPs, device hours and energy.
use rule table_main as table_costs with:
    input:
        **metrics_file(),
        **measurements_file(),
    output:
        table_output("costs", "5 costs"),
        manifest="<results>/table_costs/manifest.json",
    log:
        "<logs>/table_costs.log",
    params:
        script="table_costs",
        code=code_fingerprint("table_costs"),


rule paper_numbers:
    """Write a LaTeX macro for every number of metrics.csv at the headline step."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/paper_numbers/numbers", ".tex", ".csv", ".md"),
        manifest="<results>/paper_numbers/manifest.json",
    log:
        "<logs>/paper_numbers.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.numbers(),
        code=code_fingerprint("paper_numbers"),
    script:
        "../../scripts/paper_numbers.py"


rule paper_measured_numbers:
    """Write a LaTeX macro for every number of measurements.csv at the headline step."""
    input:
        **measurements_file(),
    output:
        multiext("<results>/paper_measured_numbers/numbers", ".tex", ".csv", ".md"),
        manifest="<results>/paper_measured_numbers/manifest.json",
    log:
        "<logs>/paper_measured_numbers.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.numbers(),
        code=code_fingerprint("paper_measured_numbers"),
    script:
        "../../scripts/paper_measured_numbers.py"


rule summarize:
    """Write the report's first page."""
    input:
        **metrics_file(),
    output:
        page="<results>/summarize/summary.rst",
        manifest="<results>/summarize/manifest.json",
    log:
        "<logs>/summarize.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **PLAN.jobs.summary(),
        code=code_fingerprint("summarize"),
    script:
        "../../scripts/summarize.py"


rule model_card:
    """Write the card of a checkpoint at the headline step, into its folder too."""
    input:
        **metrics_file(),
        **measurements_file(),
        checkpoint="<results>/{maker}/{model}/manifest.json",
        teacher=teacher_manifest,
    output:
        "<results>/model_card/{maker}/{model}/README.md",
        beside="<results>/{maker}/{model}/README.md",
        manifest="<results>/model_card/{maker}/{model}/manifest.json",
    log:
        "<logs>/model_card/{maker}/{model}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        **params_of(
            lambda wildcards: PLAN.jobs.card(wildcards.model),
            *(
                "study",
                "headline",
                "model",
                "method",
                "base_model",
                "licence",
                "given",
                "corpus",
                "datasets",
                "tasks",
                "texts",
            ),
        ),
        code=code_fingerprint("model_card"),
    script:
        "../../scripts/model_card.py"


FIGURES = ["tradeoff", "loss", "pareto", "training", "flips", "order"]
TABLES = ["main", "significance", "ablation", "efficiency", "costs"]
TABLES_AND_FIGURES = {
    **{
        f"table_{table}.{suffix}": f"<results>/table_{table}/{table}.{suffix}"
        for table in TABLES
        for suffix in TABLE_FORMATS
    },
    **{
        f"figure_{figure}_{teacher}.{suffix}": (
            f"<results>/figure_{figure}/{teacher}/{figure}.{suffix}"
        )
        for teacher in STUDY.teachers
        for figure in FIGURES
        if PLAN.jobs.has_figure(teacher, figure)
        for suffix in FIGURE_FORMATS
    },
    **{
        f"{name}.{suffix}": f"<results>/{name}/numbers.{suffix}"
        for name in ("paper_numbers", "paper_measured_numbers")
        for suffix in NUMBER_FORMATS
    },
}
PAPER_FILES = {
    "metrics.csv": "<results>/metrics.csv",
    "measurements.csv": "<results>/measurements.csv",
    **TABLES_AND_FIGURES,
}
PAPER_MANIFESTS = [
    "<results>/collect_metrics/manifest.json",
    "<results>/collect_measurements/manifest.json",
    *manifests_beside(TABLES_AND_FIGURES.values()),
]
CARDS = [
    f"<results>/model_card/{PLAN.models.place(model)}/manifest.json"
    for model in PLAN.jobs.carded()
]


rule collect_paper:
    """Collect figures, tables and the metrics into one folder."""
    input:
        files=ancient(list(PAPER_FILES.values())),
        manifests=PAPER_MANIFESTS,
    output:
        [f"<results>/paper/{name}" for name in PAPER_FILES],
        manifest="<results>/paper/manifest.json",
    log:
        "<logs>/collect_paper.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        names=list(PAPER_FILES),
        # An auditor's: the request of all this. Only this cheap rule depends on all of it.
        config=PLAN.jobs.recorded_config(),
        code=code_fingerprint("collect_paper"),
    script:
        "../../scripts/collect_paper.py"


rule paper_bundle:
    """Put all of the paper's files into one zip."""
    input:
        files=ancient(list(PAPER_FILES.values())),
        manifests=PAPER_MANIFESTS,
    output:
        zip="<results>/paper_bundle/paper.zip",
        manifest="<results>/paper_bundle/manifest.json",
    log:
        "<logs>/paper_bundle.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        names=list(PAPER_FILES),
        study=STUDY.study,
        code=code_fingerprint("paper_bundle"),
    script:
        "../../scripts/paper_bundle.py"
