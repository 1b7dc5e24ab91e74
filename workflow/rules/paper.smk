# From the numbers to figures, tables, macros, the report's first page and model cards.

TABLE_FORMATS = ["tex", "csv", "md", "html"]
FIGURE_FORMATS = ["pdf", "svg", "png", "csv"]
NUMBER_FORMATS = ["tex", "csv", "md"]


rule figure_tradeoff:
    """Draw scores and held-out loss of one teacher's arms against reduction."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/figure_tradeoff/{teacher}/tradeoff", ".pdf", ".svg", ".csv"),
        report(
            "<results>/figure_tradeoff/{teacher}/tradeoff.png",
            caption="../report/figure_tradeoff.rst",
            category="Figures",
            labels={"figure": "1 trade-off", "teacher": "{teacher}"},
        ),
        manifest="<results>/figure_tradeoff/{teacher}/manifest.json",
    log:
        "<logs>/figure_tradeoff/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.reporting_spec(),
        code=code_fingerprint("figure_tradeoff"),
    script:
        "../../scripts/figure_tradeoff.py"


rule figure_loss:
    """Draw one teacher's losses on held-out texts by step."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/figure_loss/{teacher}/loss", ".pdf", ".svg", ".csv"),
        report(
            "<results>/figure_loss/{teacher}/loss.png",
            caption="../report/figure_loss.rst",
            category="Figures",
            labels={"figure": "2 loss by step", "teacher": "{teacher}"},
        ),
        manifest="<results>/figure_loss/{teacher}/manifest.json",
    log:
        "<logs>/figure_loss/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        code=code_fingerprint("figure_loss"),
    script:
        "../../scripts/figure_loss.py"


rule figure_pareto:
    """Draw one teacher's losses against parameters, measured speed and measured memory."""
    input:
        **metrics_file(),
        **measurements_file(),
    output:
        multiext("<results>/figure_pareto/{teacher}/pareto", ".pdf", ".svg", ".csv"),
        report(
            "<results>/figure_pareto/{teacher}/pareto.png",
            caption="../report/figure_pareto.rst",
            category="Figures",
            labels={"figure": "3 Pareto fronts", "teacher": "{teacher}"},
        ),
        manifest="<results>/figure_pareto/{teacher}/manifest.json",
    log:
        "<logs>/figure_pareto/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        code=code_fingerprint("figure_pareto"),
    script:
        "../../scripts/figure_pareto.py"


rule figure_training:
    """Draw one teacher's training curves across steps."""
    input:
        histories=ancient(HISTORIES),
        manifests=manifests_beside(HISTORIES),
    output:
        multiext("<results>/figure_training/{teacher}/training", ".pdf", ".svg", ".csv"),
        report(
            "<results>/figure_training/{teacher}/training.png",
            caption="../report/figure_training.rst",
            category="Figures",
            labels={"figure": "4 training curves", "teacher": "{teacher}"},
        ),
        manifest="<results>/figure_training/{teacher}/manifest.json",
    log:
        "<logs>/figure_training/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.curves_spec(),
        code=code_fingerprint("figure_training"),
    script:
        "../../scripts/figure_training.py"


rule figure_flips:
    """Draw the answers that changed against the change of accuracy, for one teacher."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/figure_flips/{teacher}/flips", ".pdf", ".svg", ".csv"),
        report(
            "<results>/figure_flips/{teacher}/flips.png",
            caption="../report/figure_flips.rst",
            category="Figures",
            labels={"figure": "5 changed answers", "teacher": "{teacher}"},
        ),
        manifest="<results>/figure_flips/{teacher}/manifest.json",
    log:
        "<logs>/figure_flips/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.reporting_spec(),
        code=code_fingerprint("figure_flips"),
    script:
        "../../scripts/figure_flips.py"


rule figure_order:
    """Draw which block of one teacher was replaced when, and what each step added to the loss."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/figure_order/{teacher}/order", ".pdf", ".svg", ".csv"),
        report(
            "<results>/figure_order/{teacher}/order.png",
            caption="../report/figure_order.rst",
            category="Figures",
            labels={"figure": "6 order and damage", "teacher": "{teacher}"},
        ),
        manifest="<results>/figure_order/{teacher}/manifest.json",
    log:
        "<logs>/figure_order/{teacher}.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        code=code_fingerprint("figure_order"),
    script:
        "../../scripts/figure_order.py"


rule table_main:
    """Write the main table: each arm at the headline step, beside what is claimed."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/table_main/main", ".tex", ".md", ".csv"),
        report(
            "<results>/table_main/main.html",
            caption="../report/table_main.rst",
            category="Tables",
            labels={"table": "1 main results"},
        ),
        manifest="<results>/table_main/manifest.json",
    log:
        "<logs>/table_main.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.reporting_spec() | {"headline_step": PLAN.headline_steps()},
        code=code_fingerprint("table_main"),
    script:
        "../../scripts/table_main.py"


rule table_significance:
    """Write how each arm differs from its teacher, and how sure that is."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/table_significance/significance", ".tex", ".md", ".csv"),
        report(
            "<results>/table_significance/significance.html",
            caption="../report/table_significance.rst",
            category="Tables",
            labels={"table": "2 differences to the teacher"},
        ),
        manifest="<results>/table_significance/manifest.json",
    log:
        "<logs>/table_significance.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.reporting_spec() | {"headline_step": PLAN.headline_steps()},
        code=code_fingerprint("table_significance"),
    script:
        "../../scripts/table_significance.py"


rule table_ablation:
    """Write what each arm cost and what it closes of the first iskd arm's gap to the teacher."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/table_ablation/ablation", ".tex", ".md", ".csv"),
        report(
            "<results>/table_ablation/ablation.html",
            caption="../report/table_ablation.rst",
            category="Tables",
            labels={"table": "3 ablation"},
        ),
        manifest="<results>/table_ablation/manifest.json",
    log:
        "<logs>/table_ablation.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.ablation_spec(),
        code=code_fingerprint("table_ablation"),
    script:
        "../../scripts/table_ablation.py"


rule table_efficiency:
    """Write what each arm needs: parameters, memory and speed, beside its teacher."""
    input:
        **metrics_file(),
        **measurements_file(),
    output:
        multiext("<results>/table_efficiency/efficiency", ".tex", ".md", ".csv"),
        report(
            "<results>/table_efficiency/efficiency.html",
            caption="../report/table_efficiency.rst",
            category="Tables",
            labels={"table": "4 efficiency"},
        ),
        manifest="<results>/table_efficiency/manifest.json",
    log:
        "<logs>/table_efficiency.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.reporting_spec() | {"headline_step": PLAN.headline_steps()},
        code=code_fingerprint("table_efficiency"),
    script:
        "../../scripts/table_efficiency.py"


rule table_costs:
    """Write what each arm cost: tokens, FLOPs, device hours and energy."""
    input:
        **metrics_file(),
        **measurements_file(),
    output:
        multiext("<results>/table_costs/costs", ".tex", ".md", ".csv"),
        report(
            "<results>/table_costs/costs.html",
            caption="../report/table_costs.rst",
            category="Tables",
            labels={"table": "5 costs"},
        ),
        manifest="<results>/table_costs/manifest.json",
    log:
        "<logs>/table_costs.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        spec=PLAN.reporting_spec() | {"headline_step": PLAN.headline_steps()},
        code=code_fingerprint("table_costs"),
    script:
        "../../scripts/table_costs.py"


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
        spec=PLAN.numbers_spec(),
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
        spec=PLAN.numbers_spec(),
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
        spec=PLAN.summary_spec(),
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
        spec=lambda wildcards: PLAN.card_spec(wildcards.model),
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
        if PLAN.has_figure(teacher, figure)
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
    f"<results>/model_card/{PLAN.place(model)}/manifest.json" for model in PLAN.carded()
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
        # An auditor's: what all this was asked for with. Only this cheap rule depends on all of it.
        config=PLAN.recorded_config(),
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
