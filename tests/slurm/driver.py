"""Snakemake, asking SLURM every two seconds how its jobs are: `python driver.py <arguments>`.

Its plugin asks ten seconds later after each answer without news, up to three minutes. That spares a
real cluster's controller; here most of the tests' time would go by between two questions.
"""

import asyncio
import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

SECONDS = 2


async def _sleep(_: RemoteExecutor) -> None:
    await asyncio.sleep(SECONDS)


if __name__ == "__main__":
    RemoteExecutor.sleep = _sleep
    main(sys.argv[1:])
