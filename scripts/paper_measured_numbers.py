"""Write a LaTeX macro for every number of measurements.csv at the headline step."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.numbers import numbers_table, save_numbers

    spec = job.params
    table = numbers_table(read_metrics(job.inputs["measurements"]), spec["headline_step"])
    save_numbers(table, job.out / "numbers", f"Measured numbers of the study {spec['study']}.")
    job.summary |= {"numbers": len(table)}
