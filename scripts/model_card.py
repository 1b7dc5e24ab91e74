"""Write the model card of one checkpoint, with what was measured of it."""

import json

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.card import model_card
    from iskd.paper.metrics import read_metrics
    from iskd.provenance.artifact import read_manifest
    from iskd.provenance.tensors import dominant_dtype, weight_files

    spec = job.params
    metrics, measurements = (read_metrics(job.inputs[name]) for name in ("metrics", "measurements"))
    stored = dominant_dtype(weight_files(job.folder("checkpoint")))
    teacher = read_manifest(job.folder("teacher")).summary
    config = json.loads((job.folder("checkpoint") / "config.json").read_bytes())
    text = model_card(
        metrics,
        measurements,
        spec["model"],
        spec["headline"],
        spec,
        stored=stored,
        origin={key: teacher[key] for key in ("gguf", "quantization") if key in teacher},
        own_code="auto_map" in config,
    )
    (job.out / "README.md").write_text(text, encoding="utf-8")
