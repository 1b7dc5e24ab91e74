"""Print the request of each job of a study, as Snakemake derives it from the config: one JSON list.

``python tools/plan.py CONFIG``, in an empty folder: nothing is read but the workflow and the
config, so that whoever checks results learns what must be there without asking the results.
"""

import json
import sys
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    ResourceSettings,
    StorageSettings,
)

# Parameters that say how a job is tracked; its statement has them outside of the parameters.
TRACKING = ("code", "script", "seed")


def planned(config: Path) -> list[dict[str, Any]]:
    """Derive the jobs of a study that publish an artifact.

    Args:
        config: the study's config file.

    Returns:
        for each job: rule, wildcards, parameters, seed, code, the files it reads and
        writes, and which of these is its manifest
    """
    settings = OutputSettings(dryrun=True, quiet={Quietness.ALL})
    with SnakemakeApi(settings) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[config]),
            storage_settings=StorageSettings(),
            snakefile=Path(__file__).parents[1] / "workflow" / "Snakefile",
        )
        workflow.dag(dag_settings=DAGSettings(forceall=True))
        # What `snakemake --dag` does before it prints.
        inner = workflow._workflow
        inner._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        inner._build_dag()
        return [_request(job) for job in inner.dag.jobs if "manifest" in dict(job.output.items())]


def _request(job: Any) -> dict[str, Any]:
    params = dict(job.params.items())
    return {
        "rule": job.rule.name,
        "wildcards": dict(job.wildcards_dict),
        "parameters": {key: value for key, value in params.items() if key not in TRACKING},
        "seed": params.get("seed"),
        "code": params.get("code"),
        "inputs": {
            name: files if isinstance(files, str) else [str(file) for file in files]
            for name, files in job.input.items()
        },
        "outputs": [str(file) for file in job.output],
        "manifest": str(job.output.manifest),
    }


if __name__ == "__main__":
    # In the order of the config: that of arms and tasks is that of rows and columns.
    print(json.dumps(planned(Path(sys.argv[1]).resolve())))
