"""Train a model whose weights are split between processes (PyTorch's FSDP, its second version).

Splitting changes a model for good: classes, parameters and their names' owners. So a copy is
trained, and the model takes over its weights in the end.
"""

import copy
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, TrainingArguments

from iskd.models import family_of


def copy_to_train(
    model: PreTrainedModel, groups: list[dict[str, Any]]
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Copy a model to be trained in its place, where it is; the model itself makes room.

    Args:
        model: the model; it moves to the processor's memory.
        groups: the optimiser's parameter groups, of the model's parameters.

    Returns:
        the copy, and the same groups of its parameters
    """
    copied = copy.deepcopy(model)
    own = dict(copied.named_parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {**group, "params": [own[names[id(parameter)]] for parameter in group["params"]]}
        for group in groups
    ]
    model.to("cpu")
    return copied, groups


def split_by_block(model: PreTrainedModel, args: TrainingArguments) -> None:
    """Have the Trainer split a model, block by block.

    Under bfloat16 each block's weights are cast when they are gathered, and gradients are summed
    in float32.
    """
    kinds = {type(block).__name__ for block in family_of(model.config).blocks(model)}
    args.fsdp = True
    args.fsdp_config = {"version": 2, "transformer_layer_cls_to_wrap": sorted(kinds)}
    args.fsdp_plugin_args = args._process_fsdp_args()
    if args.bf16:
        args.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if args.device.type == "cpu":
        # accelerate splits models between GPUs only and otherwise says nothing; torch splits them
        # between processors too, which is how this is tested.
        PartialState().distributed_type = DistributedType.MULTI_GPU


def take_over(model: PreTrainedModel, copied: nn.Module) -> None:
    """Give a model the weights that its split copy has learnt: the whole of them.

    Only the first process has them then; what the others hold has shapes and no numbers.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(copied, options=options)
    if distributed.get_rank():
        model.to("meta")
    else:
        model.load_state_dict(weights)
