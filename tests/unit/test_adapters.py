"""Fine-tuning a compressed model with what others use: PEFT's LoRA, TRL, checkpointed gradients.

The packages are not in the lock; where one is missing its tests skip. docs/serving.md has a
transcript of them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from iskd.data.corpus import train_tokenizer
from iskd.models import CompactSizes, NarrowSizes, family_of
from iskd.models.folder import load_tokenizer, save_model
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, MakeModel

IDS = torch.arange(1, 25).reshape(2, 12)
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}"
    "{{ eos_token }}{% endfor %}"
)
TEXTS = ["Who saw the fox?", "The hen saw the fox by the old red barn."] * 20


def mixed(tiny_model: MakeModel, family: str, **changes: Any) -> PreTrainedModel:
    """A compact block, a narrow one without attention, a whole one."""
    compact = {0: CompactSizes(16, 2, 2, 24, POSITIONS)}
    share = SHARE.get(family, 1)
    narrow = {1: NarrowSizes(share, 9), 2: NarrowSizes(0, 12)}
    return tiny_model(family, blocks=4, compact=compact, narrow=narrow, **changes)


def adapted(model: PreTrainedModel, **settings: Any) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(model, config)


def train(model: Any, steps: int = 3) -> None:
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=0.02)
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_resolves_inside_and_outside_of_new_blocks_and_merges(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    model = mixed(tiny_model, family)
    model.save_pretrained(tmp_path / "base")
    before = logits_of(model)
    peft_model = adapted(model, target_modules="all-linear")
    path = family_of(model.config).adapter.blocks_path
    reached = {
        name.removeprefix("base_model.model.").split(".lora_A")[0]
        for name, _ in peft_model.named_modules()
        if name.endswith("lora_A.default")
    }
    for part in (f"{path}.0.down", f"{path}.0.blocks.1.", f"{path}.1.", f"{path}.2.", f"{path}.3."):
        assert any(name.startswith(part) for name in reached), part
    torch.testing.assert_close(logits_of(peft_model), before)
    train(peft_model)
    tuned = logits_of(peft_model)
    assert not torch.allclose(tuned, before, atol=1e-2)
    peft_model.save_pretrained(tmp_path / "adapter")
    # The adapter on a base that is read anew; and merged, as an ordinary folder.
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(again), tuned)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), tuned, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(read) is type(mixed(tiny_model, family))
    assert torch.equal(logits_of(read), logits_of(merged))
    assert list((tmp_path / "merged").glob("iskd_*.py"))


def test_a_target_is_found_by_its_name_wherever_it_stands(tiny_model: MakeModel) -> None:
    peft_model = adapted(mixed(tiny_model, "llama"), target_modules=["q_proj", "v_proj", "up"])
    names = {n for n, _ in peft_model.named_modules() if n.endswith("lora_A.default")}
    found = sorted(n.removeprefix("base_model.model.model.layers.") for n in names)
    assert found == [
        *(f"0.blocks.{i}.self_attn.{p}_proj.lora_A.default" for i in (0, 1) for p in "qv"),
        "0.up.lora_A.default",
        *(f"{i}.self_attn.{p}_proj.lora_A.default" for i in (1, 3) for p in "qv"),
    ]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_checkpointed_gradients_are_the_same(lora: bool, tiny_model: MakeModel) -> None:
    found = []
    calls: dict[str, list[int]] = {
        name: [] for name in ("0.down", "0.blocks.1.mlp", "1.mlp", "2.mlp", "3.mlp")
    }
    for checkpointing in (False, True):
        model = mixed(tiny_model, "llama").train()
        tuned: Any = model
        if lora:
            tuned = adapted(model, target_modules="all-linear", init_lora_weights=False)
        if checkpointing:
            tuned.activation_checkpointing_enable()
            tuned.enable_input_require_grads()
        for name, counts in calls.items():
            counts.append(0)
            part = model.get_submodule(f"model.layers.{name}")
            part.register_forward_pre_hook(lambda *_, counts=counts: add_one(counts))
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        found.append({n: p.grad for n, p in tuned.named_parameters() if p.requires_grad})
    assert all(grad is not None and grad.any() for grad in found[0].values())
    torch.testing.assert_close(found[1], found[0])
    # Each block was computed again in the backward pass, and what lies inside of it, too.
    assert all(again > once for once, again in calls.values()), calls


def add_one(counts: list[int]) -> None:
    counts[-1] += 1


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_trl_tunes_it_with_the_kept_chat_template(
    lora: bool, tiny_model: MakeModel, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer: PreTrainedTokenizerFast = train_tokenizer(TEXTS, vocabulary=300, length=POSITIONS)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = tokenizer.eos_token
    save_model(mixed(tiny_model, "llama", vocab_size=len(tokenizer)), tokenizer, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    kept = load_tokenizer(tmp_path / "base")
    assert kept.chat_template == TEMPLATE
    chats = [
        [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
        for _ in range(8)
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = SFTTrainer(
        model=model,
        processing_class=kept,
        train_dataset=Dataset.from_dict({"messages": chats}),
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear") if lora else None,
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            max_length=POSITIONS,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=True,
            seed=1,
        ),
    )
    rendered = kept.decode(trainer.train_dataset[0]["input_ids"])
    assert rendered == f"[user] {TEXTS[0]}{kept.eos_token}[assistant] {TEXTS[1]}{kept.eos_token}"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    tuned = trainer.model.merge_and_unload() if lora else trainer.model
    tuned.save_pretrained(tmp_path / "tuned")
    kept.save_pretrained(tmp_path / "tuned")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert type(read) is type(model)
    changed = {
        name.split(".")[2]
        for name, value in read.state_dict().items()
        if name.startswith("model.layers.") and not torch.equal(value, before[name])
    }
    assert changed == {"0", "1", "2", "3"}
    assert load_tokenizer(tmp_path / "tuned").chat_template == TEMPLATE
