# From the metrics to figures and tables, and all of them in one folder.

TABLE_FORMATS = ["tex", "csv", "md"]
FIGURE_FORMATS = ["pdf", "svg", "png", "csv"]


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
            labels={"teacher": "{teacher}"},
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


rule table_main:
    """Write the main table: each arm at the headline step."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/table_main/main", ".tex", ".md"),
        report(
            "<results>/table_main/main.csv",
            caption="../report/table_main.rst",
            category="Tables",
            labels={"table": "main"},
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


rule table_ablation:
    """Write what each arm cost and what it closes of the first iskd arm's gap to the teacher."""
    input:
        **metrics_file(),
    output:
        multiext("<results>/table_ablation/ablation", ".tex", ".md"),
        report(
            "<results>/table_ablation/ablation.csv",
            caption="../report/table_ablation.rst",
            category="Tables",
            labels={"table": "ablation"},
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


TABLES_AND_FIGURES = {
    **{
        f"table_main.{suffix}": f"<results>/table_main/main.{suffix}"
        for suffix in TABLE_FORMATS
    },
    **{
        f"table_ablation.{suffix}": f"<results>/table_ablation/ablation.{suffix}"
        for suffix in TABLE_FORMATS
    },
    **{
        f"figure_tradeoff_{teacher}.{suffix}": (
            f"<results>/figure_tradeoff/{teacher}/tradeoff.{suffix}"
        )
        for teacher in STUDY.teachers
        for suffix in FIGURE_FORMATS
    },
}
PAPER_FILES = {"metrics.csv": "<results>/metrics.csv", **TABLES_AND_FIGURES}


rule collect_paper:
    """Collect figures, tables and the metrics into one folder."""
    input:
        files=ancient(list(PAPER_FILES.values())),
        metrics_manifest="<results>/collect_metrics/manifest.json",
        manifests=manifests_beside(TABLES_AND_FIGURES.values()),
    output:
        [f"<results>/paper/{name}" for name in PAPER_FILES],
        manifest="<results>/paper/manifest.json",
    log:
        "<logs>/collect_paper.log",
    conda:
        "../../envs/iskd.yaml"
    params:
        names=list(PAPER_FILES),
        code=code_fingerprint("collect_paper"),
    script:
        "../../scripts/collect_paper.py"
