# Whether the results are what they say: `snakemake audit`. The other questions of an auditor are those
# of the command `iskd`, see docs/audit.md.


rule audit:
    """Make the study if it lacks anything, then verify all of it; a finding fails the call.

    It has no output, so that it runs each time: an old verdict says nothing about what lies there.
    """
    input:
        rules.all.input,
    log:
        "<logs>/audit.log",
    localrule: True
    conda:
        "../../envs/iskd.yaml"
    params:
        python=sys.executable,
        scripts=str(SCRIPTS),
        study=lambda wildcards, input: str(Path(input[0]).parents[1]),
    shell:
        "PYTHONPATH={params.scripts:q} {params.python:q} -m iskd.cli verify {params.study:q}"
        " --at checkout 2>&1 | tee {log:q}"
