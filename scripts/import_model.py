"""Take in a teacher from a local folder."""

import shutil
from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.models.folder import adopt_model

    job.summary |= {"folder": job.params["folder"]}
    if job.params["gguf"] is not None:
        from iskd.models.dequantised import dequantise

        file = Path(job.inputs["model"][0])
        header = dequantise(file, job.out, precision=job.params["save_precision"])
        job.summary |= {"gguf": file.name, "quantization": header.quantization}
    else:
        for given in map(Path, job.inputs["model"]):
            # A chat template beside the usual one lies in a folder of that name.
            nested = given.parent.name == "additional_chat_templates"
            place = job.out / given.parent.name if nested else job.out
            place.mkdir(exist_ok=True)
            shutil.copyfile(given, place / given.name)
    job.summary |= {
        "parameters": adopt_model(job.out, family=job.params["family"], blocks=job.params["blocks"])
    }
